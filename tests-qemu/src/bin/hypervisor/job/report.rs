//! What the host is told: progress now and then, and the report at the end.

use serde::Serialize;
use stage2::{cpu::Statistics, dirty::Tracking};
use stage2_platform::{events, timer};

use super::{
    arguments::Arguments,
    devices::Checks,
    housekeeper::House,
    replica::Comparison,
    shared::{Ending, Shared},
};

#[derive(Serialize)]
struct Progress {
    event: &'static str,
    phase: &'static str,
    /// Since power-on.
    seconds: f32,
    rounds: u64,
    dirty_pages: u64,
    faults: u64,
    tables_freed: u64,
}

/// Tells that the run goes on.
pub(crate) fn progress(phase: &'static str, shared: &Shared<'_>, house: &House<'_>) {
    let statistics = shared.stage2.mmu().statistics();
    emit(&Progress {
        event: "progress",
        phase,
        seconds: timer::now().as_secs_f32(),
        rounds: house.migrations.replica.rounds,
        dirty_pages: house.migrations.replica.copied,
        faults: statistics.faults_translation + statistics.faults_permission,
        tables_freed: statistics.tables_freed,
    });
}

/// Everything the run has shown, as the issue of the main job names it.
#[derive(Serialize)]
pub(crate) struct Report {
    event: &'static str,
    outcome: &'static str,
    guest: Guest,
    replica: Replica,
    dirty: Dirty,
    blocks: Blocks,
    throughput: Throughput,
    moved: Moved,
    faults: Faults,
    walks: Walks,
    tables: Tables,
    grace_periods: u64,
    tlb: Tlb,
    stalls: u64,
    violations: u64,
    leaked: u64,
}

#[derive(Serialize)]
struct Guest {
    /// Those that were turned on.
    vcpus: usize,
    memory_mib: u64,
    /// The built-in guest's own checks. Linux tells its console.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks_failed: Option<u64>,
}

#[derive(Serialize)]
struct Replica {
    equal: bool,
    /// Pages the guest has touched, all compared.
    pages: u64,
    different: u64,
}

#[derive(Serialize)]
struct Dirty {
    mode: &'static str,
    rounds: u64,
    pages: u64,
    /// How often the replica was equal to the frozen guest's memory.
    equal: u64,
    /// Permission faults while a log was on: stores to what was clean.
    faults: u64,
    /// By scans, since nothing in them could be dirty.
    tables_skipped: u64,
}

#[derive(Serialize)]
struct Blocks {
    mapped: u64,
    split: u64,
    collapsed: u64,
    /// Of what is mapped, how much blocks map: before a log is on, and when it was off and blocks were joined again.
    share_before: f32,
    share_after: f32,
}

/// The guest's own work in a second: before, during and after a log is on.
#[derive(Serialize)]
struct Throughput {
    before: f32,
    during: f32,
    after: f32,
}

#[derive(Serialize)]
struct Moved {
    ranges: u64,
    pages: u64,
}

#[derive(Serialize)]
struct Faults {
    translation: u64,
    permission: u64,
    access_flag: u64,
    mmio: u64,
    spurious: u64,
    retry: u64,
    reflected: u64,
}

#[derive(Serialize)]
struct Walks {
    read_only: u64,
    read_write: u64,
    revalidation_retries: u64,
    coupled: u64,
}

#[derive(Serialize)]
struct Tables {
    /// When the guest ended.
    live: u64,
    peak: u64,
    linked: u64,
    unlinked: u64,
    /// By the reclaimer, while the guest ran.
    freed: u64,
    /// For a grace period, when the guest ended.
    waiting: u32,
}

#[derive(Serialize)]
struct Tlb {
    by_ipa: u64,
    by_range: u64,
    by_vmid: u64,
    local: u64,
}

impl Report {
    /// The report of a guest that all vCPUs have left and that is not torn down yet.
    pub(crate) fn new(arguments: &Arguments, shared: &Shared<'_>, house: &House<'_>) -> Self {
        let mmu = shared.stage2.mmu();
        let statistics = mmu.statistics();
        let usage = mmu.memory().usage();
        let Checks { done, failed } = shared.devices.checks();
        let own_checks = arguments.linux.is_none();
        let migrations = &house.migrations;
        let Comparison { pages, different } = migrations.comparison;
        Self {
            event: "report",
            outcome: shared.ending().name(),
            guest: Guest {
                vcpus: shared.started(),
                memory_mib: arguments.memory >> 20,
                checks: own_checks.then_some(done),
                checks_failed: own_checks.then_some(failed),
            },
            replica: Replica { equal: migrations.equal != 0 && different == 0, pages, different },
            dirty: Dirty {
                mode: migrations.mode.map_or("none", tracking_name),
                rounds: migrations.replica.rounds,
                pages: migrations.replica.copied,
                equal: migrations.equal,
                faults: migrations.faults,
                tables_skipped: migrations.tables_skipped,
            },
            blocks: Blocks {
                mapped: statistics.blocks_mapped,
                split: statistics.blocks_split,
                collapsed: statistics.blocks_collapsed,
                share_before: house.shares[0],
                share_after: house.shares[1],
            },
            throughput: Throughput { before: house.rates[0], during: house.rates[1], after: house.rates[2] },
            moved: Moved { ranges: house.mover.ranges, pages: house.mover.moved },
            faults: Faults::of(&statistics),
            walks: Walks {
                read_only: statistics.walks_read_only,
                read_write: statistics.walks_read_write,
                revalidation_retries: statistics.revalidation_retries,
                coupled: statistics.coupled_walks,
            },
            tables: Tables {
                live: usage.live - u64::from(house.waiting),
                peak: usage.peak,
                linked: statistics.tables_linked,
                unlinked: statistics.tables_unlinked,
                freed: statistics.tables_freed,
                waiting: house.waiting,
            },
            grace_periods: mmu.quiescence().periods(),
            tlb: Tlb {
                by_ipa: statistics.tlbi_by_ipa,
                by_range: statistics.tlbi_by_range,
                by_vmid: statistics.tlbi_by_vmid,
                local: statistics.tlbi_local,
            },
            stalls: statistics.stalls,
            violations: shared.violations(),
            leaked: 0,
        }
    }

    /// The teardown failed.
    pub(crate) fn add_violation(&mut self) {
        self.violations += 1;
    }

    /// So many tables and frames did not come back: a violation, too.
    pub(crate) fn add_leaked(&mut self, leaked: u64) {
        self.leaked += leaked;
        self.violations += 1;
    }

    /// Whether the run was good, as far as can be said here.
    pub(crate) fn is_good(&self) -> bool {
        self.outcome == Ending::PoweredOff.name()
            && self.replica.equal
            && self.violations == 0
            && self.guest.checks_failed.unwrap_or(0) == 0
    }

    /// Sends it.
    pub(crate) fn emit(&self) {
        emit(self);
    }
}

impl Faults {
    fn of(statistics: &Statistics) -> Self {
        Self {
            translation: statistics.faults_translation,
            permission: statistics.faults_permission,
            access_flag: statistics.faults_access_flag,
            mmio: statistics.faults_mmio,
            spurious: statistics.faults_spurious,
            retry: statistics.faults_retry,
            reflected: statistics.faults_reflected,
        }
    }
}

fn tracking_name(tracking: Tracking) -> &'static str {
    match tracking {
        Tracking::WriteProtect => "write-protect",
        Tracking::Hardware => "hardware",
        Tracking::Adaptive => "adaptive",
    }
}

fn emit(event: &impl Serialize) {
    if let Err(error) = events::emit(event) {
        defmt::error!("an event is lost: {}", error);
    }
}
