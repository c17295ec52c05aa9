//! QEMU `virt` at EL2: everything between reset and a hypervisor's own logic.
//!
//! A binary names its main function with [`main!`] and links with the workspace's `linker.ld`. When that
//! function starts, the boot CPU is at EL2 with MMU and caches on, all RAM is mapped one to one, and
//! logging works. From there:
//!
//! - [`cpus::scope`] runs a closure on several CPUs, as `std::thread::scope` does with threads;
//! - [`partition::prepare`] gives the calling CPU to a guest, [`vcpu::Vcpu::enter`] runs it until its next
//!   exception to EL2, and [`psci::Psci`] answers its power calls;
//! - [`timer::Alarm`] lets a CPU without a guest sleep;
//! - [`ram`] tells what memory is free, [`guest_tree`] builds the guest's device tree;
//! - [`trace`] tells a tracer what no instruction shows;
//! - [`args`], [`events`], [`exit()`] and `defmt`'s macros talk to the host.
//!
//! The shape is a static partition: a vCPU is a CPU, and its EL1 registers, floating point registers,
//! timers and GIC interface stay in the hardware. EL2 uses no floating point and takes no interrupt:
//! PSTATE.DAIF stays masked, so a spin lock held at EL2 is never re-entered.
#![cfg(all(target_arch = "aarch64", target_os = "none"))]
#![no_std]

extern crate alloc;

pub mod args;
mod boot;
pub mod cpus;
pub mod events;
mod exit;
pub mod gic;
pub mod guest_tree;
mod heap;
mod logger;
mod map;
mod panic;
pub mod partition;
pub mod pmu;
mod power;
pub mod psci;
pub mod ram;
mod sysreg;
pub mod timer;
pub mod trace;
pub mod vcpu;
mod vectors;

pub use exit::{ExitCode, exit};

/// Names the main function of a bare-metal binary: a path to a `fn() -> ExitCode`.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[unsafe(export_name = "stage2_platform_main")]
        fn __stage2_platform_main() -> $crate::ExitCode {
            $main()
        }
    };
}
