//! The built-in guest: a flat binary in the image, which runs on all vCPUs and needs no interrupt.
//!
//! Each vCPU has every n-th page of RAM to itself, and an array of *generations* says how often each page was written. For
//! as long as the mailbox says it picks pages of its own and checks that they hold what their generation says. A page that is
//! lost, old or somebody else's shows as a failed check or in an exception.
//!
//! It picks from one sixteenth of its pages for a while, so that there are ranges nobody uses. At first it writes the next
//! generation to each page it has checked; then it only reads, and takes no fault but for what is unmapped under it: a
//! permission fault would take all the CPU's TLB entries, the stale ones too that are looked for.
//!
//! Stage 1 is on, with 1 GiB blocks, one to one; so there are faults on its walks and combined TLB entries. Code lies in two
//! pages.
//!
//! | registers | hold |
//! |-----------|------|
//! | x19       | the vCPU's number |
//! | x20       | the mailbox |
//! | x21, x22  | how many vCPUs there are; pages in a vCPU's sixteenth |
//! | x23, x24  | the generations; the first page |
//! | x25       | when to end, in ticks of the virtual counter |
//! | x26       | the random numbers' state |
//! | x17, x18  | the heartbeat's last value; its page |
//! | x27, x28  | checks done and failed since the last report |
//! | x9, x10   | in `check` and `fill`: the page and its generation |

use core::{arch::global_asm, slice};

use stage2_platform::guest_tree::UART;

use super::devices::mailbox;

/// Pages picked from one sixteenth.
const PICKS: u64 = 4096;
/// The first so many of them are written, too.
const WRITES: u64 = 512;

const STAGE1_BLOCK: u64 = 1 << 10 | 0b11 << 8 | 1;
const EXECUTE_NEVER: u64 = 0b11 << 53;

global_asm!(
    ".pushsection .rodata.guest, \"a\"",
    ".balign 4096",
    ".global builtin_start, builtin_end",
    "builtin_start:",
    "mov x19, x0",
    "ldr x20, ={mailbox}",
    "adr x0, 90f",
    "msr vbar_el1, x0",
    // Stage 1: the first vCPU makes the table, at the start of RAM. Entry 0 is devices.
    "ldr x0, ={ram}",
    "cbnz x19, 1f",
    "ldr x1, ={device}",
    "str x1, [x0]",
    "ldr x1, ={normal} + (1 << 30)",
    "str x1, [x0, #8]",
    "ldr x1, ={normal} + (2 << 30)",
    "str x1, [x0, #16]",
    "ldr x1, ={normal} + (3 << 30)",
    "str x1, [x0, #24]",
    "ldr x1, ={normal} + (4 << 30)",
    "str x1, [x0, #32]",
    "dsb sy",
    "1: msr ttbr0_el1, x0",
    "ldr x1, ={mair}",
    "msr mair_el1, x1",
    "ldr x1, ={tcr}",
    "msr tcr_el1, x1",
    "isb",
    "tlbi vmalle1",
    "dsb nsh",
    "mrs x1, sctlr_el1",
    "ldr x2, ={sctlr}",
    "orr x1, x1, x2",
    "msr sctlr_el1, x1",
    "isb",
    // What there is to do.
    "ldr x21, [x20, #{vcpus}]",
    "ldr x0, [x20, #{memory}]",
    "ldr x18, ={ram}",
    "add x18, x18, x0",
    "mov x17, #0",
    "ldr x23, ={generations}",
    "add x24, x23, x0, lsr #9", // 8 bytes of 4096
    "add x24, x24, #4095",
    "and x24, x24, #~4095",
    "ldr x1, ={ram}",
    "add x0, x0, x1",
    "sub x0, x0, x24",
    "lsr x0, x0, #16", // a sixteenth of the pages that are left
    "udiv x22, x0, x21",
    "mrs x0, cntfrq_el0",
    "ldr x1, [x20, #{seconds}]",
    "isb",
    "mrs x25, cntvct_el0",
    "madd x25, x0, x1, x25",
    "ldr x26, [x20, #{seed}]",
    "add x26, x26, x19",
    "ldr x0, ={odd}",
    "madd x26, x26, x0, x0",
    "mov x27, #0",
    "mov x28, #0",
    // The first vCPU turns the others on, here, with their number.
    "cbnz x19, 3f",
    "mov x9, #1",
    "2: cmp x9, x21",
    "b.hs 3f",
    "ldr x0, ={cpu_on}",
    "mov x1, x9",
    "adr x2, builtin_start",
    "mov x3, x9",
    "smc #0",
    "cbnz x0, 80f",
    "add x9, x9, #1",
    "b 2b",
    // Another sixteenth: x11 is its first page. And the heartbeat: it never goes back.
    "3: ldr x0, [x18]",
    "add x27, x27, #1",
    "cmp x0, x17",
    "mov x17, x0",
    "b.hs 12f",
    "add x28, x28, #1",
    "12: bl random",
    "and x11, x0, #15",
    "mul x11, x11, x22",
    "mov x12, #{picks}",
    "4: bl random",
    "umulh x13, x0, x22", // a number below x22
    "add x13, x13, x11",
    "madd x13, x13, x21, x19",
    "add x9, x24, x13, lsl #12",
    "add x14, x23, x13, lsl #3",
    "ldr x10, [x14]",
    "cbz x10, 5f", // never written
    "bl check",
    "5: cmp x12, #{picks} - {writes}",
    "b.lo 6f",
    "add x10, x10, #1",
    "bl fill",
    "str x10, [x14]",
    "6: subs x12, x12, #1",
    "b.ne 4b",
    "str x27, [x20, #{checks}]",
    "str x28, [x20, #{failed}]",
    "mov x27, #0",
    "mov x28, #0",
    "mrs x0, cntvct_el0",
    "cmp x0, x25",
    "b.lo 3b",
    // The end: the first vCPU waits until the others are off.
    "cbnz x19, 9f",
    "mov x9, #1",
    "7: cmp x9, x21",
    "b.hs 8f",
    "ldr x0, ={affinity_info}",
    "mov x1, x9",
    "mov x2, #0",
    "smc #0",
    "cmp x0, #1",
    "b.ne 7b",
    "add x9, x9, #1",
    "b 7b",
    "8: adr x1, 70f",
    "ldr x2, ={uart}",
    "10: ldrb w0, [x1], #1",
    "cbz w0, 11f",
    "str w0, [x2]",
    "b 10b",
    "11: ldr x0, ={system_off}",
    "smc #0",
    "9: ldr x0, ={cpu_off}",
    "smc #0",
    "70: .asciz \"The built-in guest is done.\\r\\n\"",
    ".balign 4",
    // Something is wrong, and there is no going on.
    "80: mov x0, #1",
    "str x0, [x20, #{failed}]",
    "b 11b",
    ".ltorg",
    // The vectors: any exception.
    ".balign 2048",
    "90:",
    ".rept 16",
    "b 80b",
    ".balign 128",
    ".endr",
    ".balign 4096",
    // The next random number, in x0 (xorshift).
    "random:",
    "eor x26, x26, x26, lsl #13",
    "eor x26, x26, x26, lsr #7",
    "eor x26, x26, x26, lsl #17",
    "mov x0, x26",
    "ret",
    // A page of some generation has in each 64th byte: page + generation * odd, and so on by steps of odd.
    "check:",
    "ldr x1, ={odd}",
    "madd x2, x10, x1, x9",
    "mov x3, #0",
    "add x27, x27, #1",
    "1: ldr x4, [x9, x3]",
    "cmp x4, x2",
    "b.ne 2f",
    "add x2, x2, x1",
    "add x3, x3, #64",
    "tbz x3, #12, 1b",
    "ret",
    "2: add x28, x28, #1",
    "ret",
    "fill:",
    "ldr x1, ={odd}",
    "madd x2, x10, x1, x9",
    "mov x3, #0",
    "1: str x2, [x9, x3]",
    "add x2, x2, x1",
    "add x3, x3, #64",
    "tbz x3, #12, 1b",
    "ret",
    ".ltorg",
    "builtin_end:",
    ".popsection",
    ram = const super::guest::RAM,
    generations = const super::guest::RAM + (4 << 20),
    uart = const UART.start,
    mailbox = const mailbox::BASE,
    vcpus = const mailbox::VCPUS,
    memory = const mailbox::MEMORY,
    seconds = const mailbox::SECONDS,
    seed = const mailbox::SEED,
    checks = const mailbox::CHECKS,
    failed = const mailbox::FAILED,
    device = const STAGE1_BLOCK | EXECUTE_NEVER,
    // Attribute 1, inner shareable.
    normal = const STAGE1_BLOCK | 1 << 2,
    // 0 is Device-nGnRE, 1 is Normal write-back.
    mair = const 0xff04,
    // 39-bit addresses in TTBR0_EL1 alone, 4K granule, write-back inner-shareable walks, 36-bit output.
    tcr = const 1_u64 << 32 | 1 << 23 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | (64 - 39),
    // Instruction cache, data cache, MMU.
    sctlr = const 1 << 12 | 1 << 2 | 1,
    picks = const PICKS,
    writes = const WRITES,
    odd = const 0x9e37_79b9_7f4a_7c15_u64,
    cpu_on = const 0xc400_0003_u64,
    cpu_off = const 0x8400_0002_u64,
    affinity_info = const 0xc400_0004_u64,
    system_off = const 0x8400_0008_u64,
);

unsafe extern "C" {
    static builtin_start: u8;
    static builtin_end: u8;
}

/// The guest's binary: to be put at the start of a page, and entered at its first byte with 0 in x0.
pub(crate) fn image() -> &'static [u8] {
    let (start, end) = (&raw const builtin_start, &raw const builtin_end);
    // SAFETY: the assembler puts both into one section, in this order; it is constant.
    unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) }
}
