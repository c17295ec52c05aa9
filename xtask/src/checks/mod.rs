//! The steps of `cargo xtask test`.

mod bench;
mod fuzz;
mod host;
mod libtest;
mod loom;
mod miri;
mod msrv;
mod mutants;
mod runner;
pub(crate) mod sanitizer;
pub(crate) mod shuttle;
mod spin;
mod target;
mod trace;

use std::cell::OnceCell;

use anyhow::{Result, ensure};

pub(crate) use self::runner::run_steps;
use self::runner::{Step, step};
pub(crate) use self::target::{claims_machine, make_claims};
use crate::guest::Guest;
use crate::job;
use crate::prerequisites::{Qemu, TargetStd};
use crate::workspace::Workspace;

/// The CPU models everything on the machine is checked on: without hardware access flags and dirty
/// state; with both; everything QEMU has.
pub(crate) const CPUS: [&str; 3] = ["cortex-a72", "neoverse-n1", "max"];

/// What the steps share.
pub(crate) struct Context<'a> {
    workspace: &'a Workspace,
    qemu: Qemu,
    target: TargetStd,
    /// Whether the EL2 images could be built.
    images: OnceCell<bool>,
}

impl<'a> Context<'a> {
    /// Sees to it that nothing is missing on this machine.
    pub(crate) fn prepare(workspace: &'a Workspace) -> Result<Self> {
        let qemu = Qemu::ensure()?;
        let target = TargetStd::ensure(workspace)?;
        Ok(Self { workspace, qemu, target, images: OnceCell::new() })
    }

    /// Builds the EL2 images, once; no step boots an old one after a failed build.
    fn ensure_images(&self) -> Result<()> {
        let build = || job::build_images(self.workspace, &self.target).is_ok();
        ensure!(*self.images.get_or_init(build), "the EL2 images do not build");
        Ok(())
    }
}

/// Under two minutes, once everything has been built before.
pub(crate) fn quick_steps() -> Vec<Step> {
    vec![
        step("format", host::format),
        step("lints, host", host::lints),
        step("tests, host", host::tests),
        step("main job, builtin guest", |context, _| target::main_job(context, Guest::Builtin)),
    ]
}

/// All of them: the cheap ones first.
pub(crate) fn all_steps() -> Vec<Step> {
    let mut steps = vec![
        step("format", host::format),
        step("lints, host", host::lints),
        step("lints, target", target::lints),
        step("documentation", target::documentation),
        step("minimum Rust version", msrv::check),
        step("tests, host", host::tests),
        step("models, SPIN", spin::models),
        step("ThreadSanitizer", sanitizer::stress),
        step("Miri", miri::slice),
        step("fuzzing", fuzz::slice),
        step("loom", loom::protocol),
        step("shuttle", shuttle::schedules),
        step("mutants, one a rule", mutants::slice),
    ];
    for cpu in CPUS {
        steps.push(step(format!("claims on {cpu}"), move |context, log| target::claims(context, log, cpu)));
    }
    steps.push(step("claims, traced", trace::claims));
    steps.push(step("benchmarks", bench::groups));
    steps.extend([
        step("main job, builtin guest", |context, _| target::main_job(context, Guest::Builtin)),
        step("main job, Debian", |context, _| target::main_job(context, Guest::Debian)),
    ]);
    steps
}
