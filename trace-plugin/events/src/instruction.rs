//! The instructions that are told, by their A64 encodings (Arm ARM C4.1 and, for TLBI, table C5-5).

/// An instruction that is told when it is executed at EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// DSB or DMB.
    Barrier(Barrier),
    /// ISB.
    Isb,
    /// TLBI; its operand is in this general-purpose register.
    Tlbi(Tlbi, u8),
    /// MSR of one of the registers that choose a guest's tables, from this general-purpose register.
    Msr(Register, u8),
    /// ERET.
    Eret,
    /// The hint by which the image talks to a tracer: [`mark`](crate::mark).
    Mark,
}

/// A DSB or a DMB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Barrier {
    /// Which.
    pub kind: Kind,
    /// How far it reaches.
    pub domain: Domain,
    /// What it waits for.
    pub what: Barriers,
}

/// Which barrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Data Synchronization Barrier.
    Dsb,
    /// Data Memory Barrier.
    Dmb,
}

/// A shareability domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Domain {
    /// NSH.
    NonShareable,
    /// ISH.
    InnerShareable,
    /// OSH.
    OuterShareable,
    /// SY.
    FullSystem,
}

/// The accesses a barrier is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barriers {
    /// LD.
    Loads,
    /// ST.
    Stores,
    /// All.
    All,
}

/// A TLB invalidation of the EL1&0 regime.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tlbi {
    /// What it invalidates.
    pub operation: TlbiOperation,
    /// On which CPUs.
    pub scope: Scope,
}

/// What a TLBI is for. Those by VA and ASID and those of EL2's own regime are not told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlbiOperation {
    /// IPAS2E1.
    Ipas2e1,
    /// IPAS2LE1: the last level alone.
    Ipas2le1,
    /// RIPAS2E1.
    Ripas2e1,
    /// RIPAS2LE1: the last level alone.
    Ripas2le1,
    /// VMALLE1.
    Vmalle1,
    /// VMALLS12E1.
    Vmalls12e1,
    /// ALLE1.
    Alle1,
}

/// Which CPUs a TLBI reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// This one.
    Local,
    /// IS.
    InnerShareable,
    /// OS.
    OuterShareable,
}

/// A system register whose writes are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// HCR_EL2.
    Hcr,
    /// VTCR_EL2.
    Vtcr,
    /// VTTBR_EL2.
    Vttbr,
}

/// The hint's number: CRm and op2. No architecture version gives it a meaning, so that it is a NOP.
pub const MARK_HINT: u32 = 0x6e;

/// What `opcode` is, if it is told.
pub fn decode(opcode: u32) -> Option<Instruction> {
    const HINT: u32 = 0xd503_201f;
    const ERET: u32 = 0xd69f_03e0;
    let rt = (opcode & 31) as u8;
    if opcode == HINT | MARK_HINT << 5 {
        return Some(Instruction::Mark);
    }
    if opcode == ERET {
        return Some(Instruction::Eret);
    }
    let [op1, crn, crm, op2] = [opcode >> 16 & 7, opcode >> 12 & 15, opcode >> 8 & 15, opcode >> 5 & 7];
    match opcode >> 19 {
        // Barriers: op0 = 0, op1 = 3, CRn = 3, Rt = 31.
        0b1_1010_1010_0000 if (op1, crn, rt) == (3, 3, 31) => barrier(crm, op2),
        // SYS: op0 = 1.
        0b1_1010_1010_0001 if crn == 8 => tlbi(op1, crm, op2).map(|tlbi| Instruction::Tlbi(tlbi, rt)),
        // MSR: op0 = 3.
        0b1_1010_1010_0011 => register(op1, crn, crm, op2).map(|register| Instruction::Msr(register, rt)),
        _ => None,
    }
}

fn barrier(crm: u32, op2: u32) -> Option<Instruction> {
    let kind = match op2 {
        0b100 => Kind::Dsb,
        0b101 => Kind::Dmb,
        0b110 => return Some(Instruction::Isb),
        _ => return None,
    };
    let what = match crm & 0b11 {
        0b01 => Barriers::Loads,
        0b10 => Barriers::Stores,
        0b11 => Barriers::All,
        // SSBB and PSSBB, which wait for nothing here.
        _ => return None,
    };
    let domain = match crm >> 2 {
        0b00 => Domain::OuterShareable,
        0b01 => Domain::NonShareable,
        0b10 => Domain::InnerShareable,
        _ => Domain::FullSystem,
    };
    Some(Instruction::Barrier(Barrier { kind, domain, what }))
}

fn tlbi(op1: u32, crm: u32, op2: u32) -> Option<Tlbi> {
    use Scope::{InnerShareable, Local, OuterShareable};
    use TlbiOperation::{Alle1, Ipas2e1, Ipas2le1, Ripas2e1, Ripas2le1, Vmalle1, Vmalls12e1};
    let (operation, scope) = match (op1, crm, op2) {
        (4, 0, 1) => (Ipas2e1, InnerShareable),
        (4, 0, 2) => (Ripas2e1, InnerShareable),
        (4, 0, 5) => (Ipas2le1, InnerShareable),
        (4, 0, 6) => (Ripas2le1, InnerShareable),
        (4, 4, 0) => (Ipas2e1, OuterShareable),
        (4, 4, 1) => (Ipas2e1, Local),
        (4, 4, 2) => (Ripas2e1, Local),
        (4, 4, 3) => (Ripas2e1, OuterShareable),
        (4, 4, 4) => (Ipas2le1, OuterShareable),
        (4, 4, 5) => (Ipas2le1, Local),
        (4, 4, 6) => (Ripas2le1, Local),
        (4, 4, 7) => (Ripas2le1, OuterShareable),
        (0, crm, 0) => (Vmalle1, scope(crm)?),
        (4, crm, 4) => (Alle1, scope(crm)?),
        (4, crm, 6) => (Vmalls12e1, scope(crm)?),
        _ => return None,
    };
    Some(Tlbi { operation, scope })
}

/// CRm of the operations that are for all of something.
fn scope(crm: u32) -> Option<Scope> {
    match crm {
        1 => Some(Scope::OuterShareable),
        3 => Some(Scope::InnerShareable),
        7 => Some(Scope::Local),
        _ => None,
    }
}

fn register(op1: u32, crn: u32, crm: u32, op2: u32) -> Option<Register> {
    match (op1, crn, crm, op2) {
        (4, 1, 1, 0) => Some(Register::Hcr),
        (4, 2, 1, 0) => Some(Register::Vttbr),
        (4, 2, 1, 2) => Some(Register::Vtcr),
        _ => None,
    }
}

/// How an instruction that stores, stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreKind {
    /// With release semantics.
    pub release: bool,
    /// Depending on what it finds there, or together with a load: a store exclusive, a compare-and-swap, an LSE atomic. One
    /// that fails is seen as a store of what was there.
    pub atomic: bool,
}

/// What kind of store `opcode` is, if it is one.
pub fn store_kind(opcode: u32) -> StoreKind {
    let bit = |number: u32| opcode >> number & 1 != 0;
    match opcode >> 24 & 0b11_1111 {
        // Load/store exclusive and ordered, compare-and-swap: o2 = bit 23, L = bit 22, o1 = bit 21, o0 = bit 15.
        0b00_1000 if bit(23) && bit(21) => StoreKind { release: bit(15), atomic: true },
        0b00_1000 if bit(23) => StoreKind { release: bit(15) && !bit(22), atomic: false },
        // CASP is among these: o1 set, and size 0x.
        0b00_1000 => StoreKind { release: bit(15), atomic: !bit(22) || bit(21) && !bit(31) },
        // LSE atomics and SWP: A = bit 23, R = bit 22.
        0b11_1000 if bit(21) && opcode >> 10 & 0b11 == 0 => StoreKind { release: bit(22), atomic: true },
        // STLUR.
        0b01_1001 if opcode >> 21 & 0b111 == 0 && opcode >> 10 & 0b11 == 0 => {
            StoreKind { release: true, atomic: false }
        }
        _ => StoreKind::default(),
    }
}

/// Whether `opcode` maintains a cache: DC or IC.
pub fn maintains_caches(opcode: u32) -> bool {
    // SYS with CRn = 7; of those AT has a CRm of 8 or 9.
    opcode & 0xfff8_f000 == 0xd508_7000 && !matches!(opcode >> 8 & 15, 8 | 9)
}

/// What an instruction does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It loads, be it one register or a pair.
    Load,
    /// It stores.
    Store,
    /// It reads, changes and writes: an LSE atomic, a compare-and-swap, or the store of a pair of exclusives.
    Atomic(Atomic),
    /// The load of a pair of exclusives: of one atomic access with its store.
    LoadExclusive,
}

/// An atomic access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Atomic {
    /// log2 of its bytes.
    pub size: u8,
    /// With release semantics.
    pub release: bool,
}

/// What `opcode` does to memory, if it is a load or a store (Arm ARM C4.1.94), vectors and prefetches left out.
pub fn access(opcode: u32) -> Option<Access> {
    let bit = |number: u32| opcode >> number & 1 != 0;
    let is_load_or_store = bit(27) && !bit(25) && !bit(26);
    if !is_load_or_store {
        return None;
    }
    let size = (opcode >> 30) as u8;
    let by_bit = |is_load: bool| Some(if is_load { Access::Load } else { Access::Store });
    let atomic = |release| Some(Access::Atomic(Atomic { size, release }));
    let opc = opcode >> 22 & 0b11;
    match opcode >> 28 & 0b11 {
        // Exclusive and ordered: o2 = bit 23, L = bit 22, o1 = bit 21, o0 = bit 15.
        0b00 => match (bit(23), bit(21)) {
            (true, true) => atomic(bit(15)),
            (true, false) => by_bit(bit(22)),
            (false, true) if !bit(31) => atomic(bit(15)),
            (false, _) if bit(22) => Some(Access::LoadExclusive),
            (false, _) => atomic(bit(15)),
        },
        // LDAPUR and STLUR.
        0b01 if bit(24) => by_bit(opc != 0),
        // Literals; PRFM is the last.
        0b01 => (size != 0b11).then_some(Access::Load),
        // Pairs.
        0b10 => by_bit(bit(22)),
        _ if !bit(24) && bit(21) && opcode >> 10 & 0b11 == 0 => {
            // LDAPR is among the LSE atomics: o3 and opc = 100.
            if opcode >> 12 & 0xf == 0b1100 { Some(Access::Load) } else { atomic(bit(22)) }
        }
        // LDRAA and LDRAB.
        _ if !bit(24) && bit(21) && bit(10) => Some(Access::Load),
        // One register; PRFM is a load of 8 bytes with a sign.
        _ if size == 0b11 && opc == 0b10 => None,
        _ => by_bit(opc != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_stores_and_atomics_are_told_apart() {
        let atomic = |size, release| Some(Access::Atomic(Atomic { size, release }));
        for (opcode, expected, name) in [
            (0xf900_0020, Some(Access::Store), "str x0, [x1]"),
            (0xa900_7c1f, Some(Access::Store), "stp xzr, xzr, [x0]"),
            (0xa9bf_7bfd, Some(Access::Store), "stp x29, x30, [sp, #-16]!"),
            (0xa8c1_7bfd, Some(Access::Load), "ldp x29, x30, [sp], #16"),
            (0xf940_0020, Some(Access::Load), "ldr x0, [x1]"),
            (0xf862_6820, Some(Access::Load), "ldr x0, [x1, x2]"),
            (0xf822_6820, Some(Access::Store), "str x0, [x1, x2]"),
            (0xf840_8420, Some(Access::Load), "ldr x0, [x1], #8"),
            (0xb980_0020, Some(Access::Load), "ldrsw x0, [x1]"),
            (0x3900_003f, Some(Access::Store), "strb wzr, [x1]"),
            (0x5800_0000, Some(Access::Load), "ldr x0, ."),
            (0xc89f_fc20, Some(Access::Store), "stlr x0, [x1]"),
            (0xc8df_fc20, Some(Access::Load), "ldar x0, [x1]"),
            (0x085f_fc20, Some(Access::LoadExclusive), "ldaxrb w0, [x1]"),
            (0x0802_7c20, atomic(0, false), "stxrb w2, w0, [x1]"),
            (0x0802_fc20, atomic(0, true), "stlxrb w2, w0, [x1]"),
            (0xc802_fc20, atomic(3, true), "stlxr w2, x0, [x1]"),
            (0xf8e0_8022, atomic(3, true), "swpal x0, x2, [x1]"),
            (0xf820_0022, atomic(3, false), "ldadd x0, x2, [x1]"),
            (0x08e0_7c22, atomic(0, false), "casab w0, w2, [x1]"),
            (0xf8bf_c020, Some(Access::Load), "ldapr x0, [x1]"),
            (0xf980_0020, None, "prfm pldl1keep, [x1]"),
            (0x9100_0421, None, "add x1, x1, #1"),
            (0xd503_201f, None, "nop"),
            (0xd50b_7e20, None, "dc civac, x0"),
        ] {
            assert_eq!(access(opcode), expected, "{name}");
        }
    }

    #[test]
    fn cache_maintenance_is_known() {
        for (opcode, expected, name) in [
            (0xd50b_7e20, true, "dc civac, x0"),
            (0xd50b_7b20, true, "dc cvau, x0"),
            (0xd50b_7520, true, "ic ivau, x0"),
            (0xd508_711f, true, "ic ialluis"),
            (0xd508_7800, false, "at s1e1r, x0"),
            (0xd508_831f, false, "tlbi vmalle1is"),
            (0xd503_3b9f, false, "dsb ish"),
        ] {
            assert_eq!(maintains_caches(opcode), expected, "{name}");
        }
    }

    fn barrier_of(kind: Kind, domain: Domain, what: Barriers) -> Option<Instruction> {
        Some(Instruction::Barrier(Barrier { kind, domain, what }))
    }

    /// Encodings from LLVM's assembler.
    #[test]
    fn barriers_are_told_apart() {
        assert_eq!(decode(0xd503_3a9f), barrier_of(Kind::Dsb, Domain::InnerShareable, Barriers::Stores), "dsb ishst");
        assert_eq!(decode(0xd503_3b9f), barrier_of(Kind::Dsb, Domain::InnerShareable, Barriers::All), "dsb ish");
        assert_eq!(decode(0xd503_379f), barrier_of(Kind::Dsb, Domain::NonShareable, Barriers::All), "dsb nsh");
        assert_eq!(decode(0xd503_369f), barrier_of(Kind::Dsb, Domain::NonShareable, Barriers::Stores), "dsb nshst");
        assert_eq!(decode(0xd503_3f9f), barrier_of(Kind::Dsb, Domain::FullSystem, Barriers::All), "dsb sy");
        assert_eq!(decode(0xd503_3bbf), barrier_of(Kind::Dmb, Domain::InnerShareable, Barriers::All), "dmb ish");
        assert_eq!(decode(0xd503_3fdf), Some(Instruction::Isb), "isb");
        assert_eq!(decode(0xd503_309f), None, "ssbb");
        assert_eq!(decode(0xd503_305f), None, "clrex");
    }

    #[test]
    fn invalidations_are_told_apart_with_their_operand() {
        let told = |opcode| match decode(opcode) {
            Some(Instruction::Tlbi(Tlbi { operation, scope }, register)) => (operation, scope, register),
            other => panic!("{opcode:#x} is {other:?}"),
        };
        use Scope::{InnerShareable, Local};
        assert_eq!(told(0xd50c_8023), (TlbiOperation::Ipas2e1, InnerShareable, 3), "tlbi ipas2e1is, x3");
        assert_eq!(told(0xd50c_8428), (TlbiOperation::Ipas2e1, Local, 8), "tlbi ipas2e1, x8");
        assert_eq!(told(0xd50c_8040), (TlbiOperation::Ripas2e1, InnerShareable, 0), "sys #4, c8, c0, #2, x0");
        assert_eq!(told(0xd50c_80a1), (TlbiOperation::Ipas2le1, InnerShareable, 1), "tlbi ipas2le1is, x1");
        assert_eq!(told(0xd508_831f), (TlbiOperation::Vmalle1, InnerShareable, 31), "tlbi vmalle1is");
        assert_eq!(told(0xd508_871f), (TlbiOperation::Vmalle1, Local, 31), "tlbi vmalle1");
        assert_eq!(told(0xd50c_83df), (TlbiOperation::Vmalls12e1, InnerShareable, 31), "tlbi vmalls12e1is");
        assert_eq!(told(0xd50c_839f), (TlbiOperation::Alle1, InnerShareable, 31), "tlbi alle1is");
        assert_eq!(decode(0xd50c_831f), None, "tlbi alle2is");
        assert_eq!(decode(0xd508_8320), None, "tlbi vae1is, x0");
    }

    #[test]
    fn registers_marks_and_returns_are_known() {
        assert_eq!(decode(0xd51c_2109), Some(Instruction::Msr(Register::Vttbr, 9)), "msr vttbr_el2, x9");
        assert_eq!(decode(0xd51c_2148), Some(Instruction::Msr(Register::Vtcr, 8)), "msr vtcr_el2, x8");
        assert_eq!(decode(0xd51c_1100), Some(Instruction::Msr(Register::Hcr, 0)), "msr hcr_el2, x0");
        assert_eq!(decode(0xd53c_2109), None, "mrs x9, vttbr_el2");
        assert_eq!(decode(0xd51c_2000), None, "msr ttbr0_el2, x0");
        assert_eq!(decode(0xd503_2ddf), Some(Instruction::Mark), "hint #0x6e");
        assert_eq!(decode(0xd503_201f), None, "nop");
        assert_eq!(decode(0xd69f_03e0), Some(Instruction::Eret));
    }

    #[test]
    fn stores_that_release_and_stores_that_depend_are_known() {
        let kind = |opcode| {
            let StoreKind { release, atomic } = store_kind(opcode);
            (release, atomic)
        };
        assert_eq!(kind(0xf900_0020), (false, false), "str x0, [x1]");
        assert_eq!(kind(0xa900_7c1f), (false, false), "stp xzr, xzr, [x0]");
        assert_eq!(kind(0xc89f_fc20), (true, false), "stlr x0, [x1]");
        assert_eq!(kind(0x089f_fc20), (true, false), "stlrb w0, [x1]");
        assert_eq!(kind(0xc8df_fc20), (false, false), "ldar x0, [x1]");
        assert_eq!(kind(0xc802_7c20), (false, true), "stxr w2, x0, [x1]");
        assert_eq!(kind(0xc802_fc20), (true, true), "stlxr w2, x0, [x1]");
        assert_eq!(kind(0x0802_fc20), (true, true), "stlxrb w2, w0, [x1]");
        assert_eq!(kind(0xf8e0_8022), (true, true), "swpal x0, x2, [x1]");
        assert_eq!(kind(0xf8a0_8022), (false, true), "swpa x0, x2, [x1]");
        assert_eq!(kind(0xc8e0_fc22), (true, true), "casal x0, x2, [x1]");
        assert_eq!(kind(0xc8a0_7c22), (false, true), "cas x0, x2, [x1]");
    }
}
