//! The platform by itself: CPUs, log, events, sleep, and a guest of 30 instructions that calls PSCI, exits a thousand
//! times and turns itself off. Its stage-2 table is made by hand here: the library has no part in this.
//!
//! Arguments: `fault=panic` or `fault=overflow` end in a panic, exit code 2; `measure` prints what an exit costs
//! (under `-icount shift=0`). Needs three CPUs: two vCPUs, and one to keep house.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare_metal {
    use core::{
        arch::{asm, global_asm},
        hint::black_box,
        ptr,
        sync::atomic::{AtomicU32, AtomicU64, Ordering},
        time::Duration,
    };

    use aarch64_cpu::{
        asm::barrier,
        registers::{ID_AA64MMFR0_EL1, Readable, VTTBR_EL2, Writeable},
    };
    use serde::Serialize;
    use stage2_platform::{
        ExitCode, args,
        cpus::{self, CpuIndex},
        events,
        guest_tree::GuestTree,
        partition::{self, Controls},
        pmu::InstructionCounter,
        psci::{Action, Conduit, Psci, Start},
        ram::{self, Region},
        timer::{self, Alarm},
        vcpu::{Exit, Syndrome},
    };

    stage2_platform::main!(run);

    /// Where the guest's one block of RAM is, as IPA.
    const GUEST_RAM: u64 = 0x8000_0000;
    const BLOCK: u64 = 2 << 20;
    /// What the guest puts in x0 for a call that is nothing but an exit.
    const NULL_CALL: u64 = 0xc600_0000;
    const NULL_CALLS: u32 = 1000;

    // x0 is the vCPU's number, as PSCI's context. It ends with SYSTEM_OFF; other vCPUs with CPU_OFF.
    global_asm!(
        ".pushsection .rodata.guest, \"a\"",
        ".balign 4",
        "guest_start:",
        "cbnz x0, 3f",
        "mov w0, #0x84000000", // PSCI_VERSION
        "hvc #0",
        "mov w9, #0x10001",
        "cmp w0, w9",
        "b.ne 9f",
        "mov w0, #0x0003", // CPU_ON: vCPU 1, at guest_start, context 1
        "movk w0, #0xc400, lsl #16",
        "mov x1, #1",
        "adr x2, guest_start",
        "mov x3, #1",
        "smc #0",
        "cbnz x0, 9f",
        "mov x19, #{calls}",
        "2: ldr w0, ={null}",
        "hvc #0",
        "subs x19, x19, #1",
        "b.ne 2b",
        "4: mov w0, #0x0004", // AFFINITY_INFO: until vCPU 1 is off
        "movk w0, #0xc400, lsl #16",
        "mov x1, #1",
        "mov x2, #0",
        "smc #0",
        "cmp x0, #1",
        "b.ne 4b",
        "mov w0, #0x0008", // SYSTEM_OFF
        "movk w0, #0x8400, lsl #16",
        "smc #0",
        "3: mov w0, #0x0002", // CPU_OFF
        "movk w0, #0x8400, lsl #16",
        "smc #0",
        "9: brk #0",
        "b 9b",
        ".ltorg",
        "guest_end:",
        ".popsection",
        calls = const NULL_CALLS,
        null = const NULL_CALL,
    );

    unsafe extern "C" {
        static guest_start: u8;
        static guest_end: u8;
    }

    #[repr(C, align(4096))]
    struct Table([AtomicU64; 512]);

    /// Levels 1 and 2 of the guest's stage 2.
    static TABLES: [Table; 2] = [const { Table([const { AtomicU64::new(0) }; 512]) }; 2];

    #[derive(Serialize)]
    struct Report {
        event: &'static str,
        cpus: usize,
        free_mib: u64,
        guest_tree_bytes: usize,
        null_calls: u32,
        slept_us: u64,
    }

    fn run() -> ExitCode {
        match args::get("fault") {
            Some("panic") => panic!("as asked"),
            Some("overflow") => {
                black_box(overflow(1));
            }
            _ => {}
        }
        for (key, value) in args::all() {
            defmt::info!("argument {=str} is {=str}", key, value);
        }
        cpus::scope(cpus::count(), |cpu| {
            defmt::info!("{} is up, its MPIDR {=u64:#x}", cpu, cpus::affinity(cpu).unwrap_or(0))
        });

        let Some(mut free) = ram::take_free() else { return ExitCode::Violation };
        defmt::info!("free RAM {}", free);
        let free_mib = free.size() >> 20;
        let Some(block) = free.take(BLOCK, BLOCK) else { return ExitCode::Violation };
        load_guest(&block);
        make_tables(&block);

        if args::get("measure").is_some() {
            measure();
            return ExitCode::Good;
        }
        if cpus::count() < 3 {
            return ExitCode::BadArguments;
        }
        let mut results = [(0, 0); 2];
        for result in &mut results {
            *result = run_guest();
        }
        let tree =
            GuestTree { memory: GUEST_RAM..GUEST_RAM + BLOCK, vcpus: 2, bootargs: "quiet", initrd: None, rtc: None }
                .build();
        let guest_tree_bytes = tree.map_or(0, |tree| tree.len());
        let [(null_calls, slept_us), second] = results;
        let report = Report { event: "report", cpus: cpus::count(), free_mib, guest_tree_bytes, null_calls, slept_us };
        defmt::info!("{=u32} null calls, slept {=u64} us", null_calls, slept_us);
        let good = events::emit(&report).is_ok()
            && guest_tree_bytes != 0
            && null_calls == NULL_CALLS
            && second.0 == NULL_CALLS;
        if good { ExitCode::Good } else { ExitCode::Violation }
    }

    /// Uses the whole stack.
    fn overflow(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + frame[0] }
    }

    fn load_guest(block: &Region) {
        let (start, end) = (&raw const guest_start, &raw const guest_end);
        let length = end.addr() - start.addr();
        // SAFETY: the block is this function's alone and longer than the guest.
        unsafe { ptr::copy_nonoverlapping(start, block.pointer(), length) };
        for line in (block.start()..block.start() + length as u64).step_by(16) {
            // The guest fetches with its caches off.
            // SAFETY: cleaning a cache line changes no value.
            unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
        }
        barrier::dsb(barrier::SY);
        // SAFETY: as above, for instructions.
        unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
    }

    fn make_tables(block: &Region) {
        // AF, inner shareable, read and write, write-back.
        const BLOCK_ATTRIBUTES: u64 = 1 << 10 | 0b11 << 8 | 0b11 << 6 | 0b1111 << 2 | 1;
        let [level1, level2] = &TABLES;
        level2.0[0].store(block.start() | BLOCK_ATTRIBUTES, Ordering::Relaxed);
        level1.0[(GUEST_RAM >> 30) as usize].store((&raw const *level2).addr() as u64 | 0b11, Ordering::Relaxed);
        barrier::dsb(barrier::ISHST);
    }

    fn load_stage2() {
        let ps = ID_AA64MMFR0_EL1.get() & 0xf;
        // 32-bit IPA from level 1, 4K granule, inner-shareable write-back walks, RES1.
        let vtcr = 1 << 31 | ps.min(0b101) << 16 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | 0b01 << 6 | 32;
        // SAFETY: the tables map the guest's own block and nothing else; no guest runs here now.
        unsafe { asm!("msr vtcr_el2, {}", in(reg) vtcr, options(nostack, preserves_flags)) };
        VTTBR_EL2.set((&raw const TABLES[0]).addr() as u64 | 1 << 48);
        barrier::isb(barrier::SY);
        // SAFETY: dropping translations changes no value.
        unsafe { asm!("tlbi vmalls12e1is", "dsb ish", "isb", options(nostack, preserves_flags)) };
    }

    /// Runs the guest on all CPUs but the last, which sleeps and then turns vCPU 0 on. Gives the null calls, and how
    /// many microseconds a sleep of 10000 took.
    fn run_guest() -> (u32, u64) {
        let keeper = cpus::count() - 1;
        let psci = Psci::new(keeper);
        let null_calls = AtomicU32::new(0);
        let slept = AtomicU64::new(0);
        cpus::scope(cpus::count(), |cpu| {
            if cpu.get() != keeper {
                while let Some(start) = psci.wait() {
                    run_vcpu(&psci, start, &null_calls);
                }
                return;
            }
            let mut alarm = Alarm::new();
            let before = timer::now();
            alarm.sleep(Duration::from_millis(10));
            slept.store((timer::now() - before).as_micros() as u64, Ordering::Relaxed);
            let first = Start { entry: GUEST_RAM, context: 0 };
            assert!(psci.power_on(CpuIndex::BOOT, first).is_ok());
            while !psci.is_down() {
                alarm.sleep(Duration::from_millis(1));
            }
        });
        (null_calls.into_inner(), slept.into_inner())
    }

    fn run_vcpu(psci: &Psci, start: Start, null_calls: &AtomicU32) {
        partition::prepare(Controls::default());
        load_stage2();
        let mut vcpu = start.vcpu();
        loop {
            // SAFETY: prepared and loaded above.
            let exit = unsafe { vcpu.enter() };
            let conduit = match exit {
                Exit::Sync(syndrome) if syndrome.class() == Syndrome::HVC => Conduit::Hvc,
                Exit::Sync(syndrome) if syndrome.class() == Syndrome::SMC => Conduit::Smc,
                exit => panic!("the guest leaves with {exit:x?} at {:#x}", vcpu.elr),
            };
            if vcpu.x[0] == NULL_CALL {
                null_calls.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match psci.call(&mut vcpu, conduit) {
                Action::Resume => {}
                Action::Off => return,
                Action::SystemOff | Action::SystemReset => return psci.shutdown(),
            }
        }
    }

    /// The cost of a null exit, in instructions: out of the guest, through `enter`'s return and call, and back in.
    fn measure() {
        partition::prepare(Controls::default());
        load_stage2();
        let mut vcpu = Start { entry: GUEST_RAM, context: 0 }.vcpu();
        // The guest's null calls are an HVC and three more instructions each; its pass over the others comes first.
        let counter = InstructionCounter::start();
        let mut best = u32::MAX;
        for _ in 0..NULL_CALLS / 2 {
            let before = counter.read();
            // SAFETY: prepared and loaded above.
            let exit = unsafe { vcpu.enter() };
            let after = counter.read();
            if !matches!(exit, Exit::Sync(_)) {
                panic!("the guest leaves with {exit:x?}");
            }
            match vcpu.x[0] {
                NULL_CALL => best = best.min(after.wrapping_sub(before)),
                // The version it asks for; and the other vCPU, which does not run here.
                0x8400_0000 => vcpu.x[0] = 0x1_0001,
                _ => {
                    vcpu.x[0] = 0;
                    vcpu.skip_instruction();
                }
            }
        }
        defmt::info!("a null exit and entry: {=u32} instructions, 4 of them the guest's", best);
    }
}
