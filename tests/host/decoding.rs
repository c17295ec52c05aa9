//! Every syndrome there is, as far as its bits matter: what it decodes to, against a table of the architecture's rules; and
//! what a fault with it makes of a guest.

use std::cell::Cell;

use stage2::addr::{Ipa, Pa};
use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::descriptor::{Attributes, Permissions};
use stage2::fault::decode::{Access, FaultAddress, NotAnAbort, decode};
use stage2::fault::{FaultError, Outcome, Region, Syndrome};
use stage2::geometry::Granule4K;

use crate::support::*;

const DATA: u64 = 0x24;
const INSTRUCTION: u64 = 0x20;
const ISV: u64 = 1 << 24;
const FNV: u64 = 1 << 10;
const CM: u64 = 1 << 8;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;

const VA: u64 = 0xffff_8000_0000_5678;
const IPA: u64 = 0x4_3678;

/// Where the architecture says the address is (Arm ARM R_FKLWR and `IPAValid`): by fault status code, outside of a stage-1 walk.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Hpfar {
    /// It is there.
    Valid,
    /// It is not, and a translation of FAR_EL2 finds it.
    Unknown,
    /// It is not, and to translate FAR_EL2 might abort in EL2.
    Hopeless,
}

fn hpfar(code: u64) -> Hpfar {
    match code {
        // Address size, translation and access flag faults of all levels, -1 and -2 too.
        0x00..=0x0b | 0x29..=0x2c => Hpfar::Valid,
        // Permission; alignment, tag check, unsupported updates, lockdown.
        0x0c..=0x0f | 0x11 | 0x21 | 0x31 | 0x34 | 0x35 => Hpfar::Unknown,
        // External aborts, parity and granule protection of the access itself.
        0x10 | 0x18 | 0x28 => Hpfar::Unknown,
        _ => Hpfar::Hopeless,
    }
}

/// Calls `look` with each syndrome of the exception classes and all bits that any field of the fault's own takes.
fn for_each_syndrome(mut look: impl FnMut(Syndrome)) {
    let flags = [ISV, FNV, CM, S1PTW, WNR];
    for class in [DATA, INSTRUCTION] {
        for code in 0..64 {
            for chosen in 0..1u64 << flags.len() {
                let set = flags.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
                let esr = class << 26 | code | set.map(|(_, flag)| flag).sum::<u64>();
                look(Syndrome { esr, far: VA, hpfar: IPA >> 12 << 4 });
            }
        }
    }
}

fn is(syndrome: Syndrome, bit: u64) -> bool {
    syndrome.esr & bit != 0
}

#[test]
fn every_class_of_syndrome_decodes_to_what_the_architecture_says() {
    let trusted = features();
    let untrusted = features().without_hpfar();
    let mut seen = 0;
    for_each_syndrome(|syndrome| {
        let what = format!("{syndrome:?}");
        let abort = decode(syndrome, &trusted).expect(&what);
        let (code, data) = (syndrome.esr & 0x3f, syndrome.esr >> 26 == DATA);
        let walk = is(syndrome, S1PTW);
        let access = match () {
            () if walk => Access::Stage1Walk,
            () if !data => Access::Execute,
            () if is(syndrome, CM) => Access::CacheMaintenance,
            () if is(syndrome, WNR) => Access::Write,
            () => Access::Read,
        };
        assert_eq!(abort.access, access, "{what}");
        let external = code == 0x10 && is(syndrome, FNV);
        let address = match hpfar(code) {
            Hpfar::Valid if walk => FaultAddress::Ipa(Ipa::new(IPA).align_down(12)),
            Hpfar::Valid => FaultAddress::Ipa(Ipa::new(IPA)),
            // The one fault that HPFAR_EL2 holds for a walk and not for an access.
            Hpfar::Unknown if walk && (0x0c..=0x0f).contains(&code) => FaultAddress::Ipa(Ipa::new(IPA).align_down(12)),
            Hpfar::Unknown if !walk && !external => FaultAddress::NeedsTranslation { va: VA },
            _ => FaultAddress::Unknown,
        };
        assert_eq!(abort.address, address, "{what}");
        let distrusted = decode(syndrome, &untrusted).unwrap();
        let expected =
            if !walk && hpfar(code) == Hpfar::Valid { FaultAddress::NeedsTranslation { va: VA } } else { address };
        assert_eq!(distrusted.address, expected, "{what} of a CPU whose HPFAR_EL2 is not trusted");
        let permission = (0x0c..=0x0f).contains(&code);
        let writes = match access {
            Access::Write => true,
            Access::Read | Access::Execute => false,
            Access::Stage1Walk | Access::CacheMaintenance => permission,
        };
        assert_eq!(abort.wants_write(), writes, "{what}");
        seen += 1;
    });
    assert_eq!(seen, 2 * 64 * 32);
}

#[test]
fn a_device_sees_exactly_the_loads_and_stores_that_the_cpu_describes() {
    for_each_syndrome(|syndrome| {
        // SAS, SSE, SRT, SF, AR: every size and extension, and the registers at both ends.
        for fields in 0..32u64 {
            for register in [0, 17, 30, 31] {
                let (size, sign, sixty_four, acquire) = (fields & 3, fields >> 2 & 1, fields >> 3 & 1, fields >> 4 & 1);
                let more = size << 22 | sign << 21 | register << 16 | sixty_four << 15 | acquire << 14;
                let syndrome = Syndrome { esr: syndrome.esr | more, ..syndrome };
                let abort = decode(syndrome, &features()).unwrap();
                let mmio = abort.mmio(Ipa::new(IPA));
                let described = syndrome.esr >> 26 == DATA && is(syndrome, ISV) && !is(syndrome, CM | S1PTW);
                assert_eq!(mmio.is_some(), described, "{syndrome:?}");
                let Some(mmio) = mmio else { continue };
                assert_eq!((mmio.ipa, mmio.write), (Ipa::new(IPA), is(syndrome, WNR)));
                assert_eq!((mmio.size.bytes(), mmio.size.bits()), (1 << size, 8 << size));
                assert_eq!(mmio.register.map_or(31, u64::from), register);
                assert_eq!((u64::from(mmio.sign_extend), u64::from(mmio.sixty_four)), (sign, sixty_four));
                assert_eq!(u64::from(mmio.acquire_release), acquire);
                const BITS: u64 = 0x8182_8384_8586_8788;
                let mask = u64::MAX >> (64 - (8 << size));
                assert_eq!(mmio.stored(BITS), BITS & mask);
                let extended = if sign == 1 { BITS | !mask } else { BITS & mask };
                let width = if sixty_four == 1 { u64::MAX } else { u64::from(u32::MAX) };
                assert_eq!(mmio.loaded(BITS), extended & width);
            }
        }
    });
}

#[test]
fn what_the_level_the_state_and_the_reserved_bits_of_a_syndrome_say_changes_nothing_else() {
    // SET, EA, IL and ISS2: of no concern to where and what.
    let unrelated = [0b11 << 11, 1 << 9, 1 << 25, 0xff << 32, 1 << 13];
    for_each_syndrome(|syndrome| {
        let plain = decode(syndrome, &features()).unwrap();
        for more in unrelated {
            let abort = decode(Syndrome { esr: syndrome.esr | more, ..syndrome }, &features()).unwrap();
            assert_eq!((abort.access, abort.address), (plain.access, plain.address), "{syndrome:?} {more:#x}");
            assert_eq!(abort.wants_write(), plain.wants_write());
        }
        let elsewhere = Syndrome { hpfar: u64::MAX, far: u64::MAX, ..syndrome };
        let there = decode(elsewhere, &features()).unwrap();
        assert_eq!((there.class, there.access), (plain.class, plain.access));
    });
}

#[test]
fn no_other_exception_is_an_abort_of_the_guest() {
    for class in 0..64u64 {
        for iss in [0, u64::MAX >> 38, 0x7, WNR | 0xf, S1PTW | 0xf] {
            let decoded = decode(Syndrome { esr: class << 26 | iss, far: VA, hpfar: 0 }, &features());
            match class {
                DATA | INSTRUCTION => assert!(decoded.is_ok()),
                _ => assert_eq!(decoded.err(), Some(NotAnAbort { exception_class: class as u8 })),
            }
        }
    }
}

/// A machine that counts how often it is asked to translate, and is right about it.
#[derive(Default)]
struct Asked(Cell<u32>);

impl Arch for Asked {
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: Tlbi) {}
    fn enter_vmid(&self, _: Stage2Registers) -> SavedContext {
        SavedContext::default()
    }
    fn leave_vmid(&self, _: SavedContext) {}
    fn load(&self, _: Stage2Registers) {}
    fn unload(&self) {}
    fn translate_stage1(&self, address: u64, _: Stage1Access) -> u64 {
        assert_eq!(address, VA);
        self.0.set(self.0.get() + 1);
        IPA >> 12 << 12
    }
    fn clean_invalidate_to_poc(&self, _: Pa, _: u64) {}
    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
    fn is_loaded(&self, _: Stage2Registers) -> bool {
        true
    }
    fn synchronize_instructions(&self, _: Pa, _: u64, _: bool, _: bool) {}
}

#[test]
fn every_fault_has_an_outcome_and_stage_1_is_asked_exactly_where_hpfar_does_not_say() {
    let mmu = machine_of::<_, Granule4K>(Asked::default(), 1, 16, features());
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let page = IPA >> 12 << 12;
    let rwx = Attributes::normal(Permissions::RWX);
    for (region, mapped) in [
        (Region::Memory(rwx), false),
        (Region::Memory(rwx), true),
        (Region::Memory(Attributes::normal(Permissions::R)), false),
        (Region::Emulated, false),
        (Region::Nothing, false),
    ] {
        let mut outcomes = [0; 4];
        for_each_syndrome(|syndrome| {
            if mapped {
                guest.map(&reader, range(page, PAGE), Pa::new(0x8000), rwx, stage2::dirty::Content::New).unwrap();
                guest.write_protect(&reader, range(page, PAGE)).unwrap();
            }
            mmu.arch().0.set(0);
            let backing = Memory { region, ..Memory::at(0x8000, RW) };
            let loaded = guest.load(&reader).unwrap();
            let outcome = loaded.resolve(&reader, &backing, syndrome).unwrap();
            drop(loaded);
            let code = syndrome.esr & 0x3f;
            let abort = decode(syndrome, &features()).unwrap();
            // What is not of stage 2 is the guest's own, wherever it is.
            let of_stage_2 = matches!(code, 0x04..=0x0f | 0x2a | 0x2b);
            let asks = of_stage_2 && matches!(abort.address, FaultAddress::NeedsTranslation { .. });
            assert_eq!(mmu.arch().0.get(), u32::from(asks), "{syndrome:?}");
            match outcome {
                Outcome::Mmio(access) => {
                    assert!(of_stage_2 && region == Region::Emulated && is(syndrome, ISV), "{syndrome:?}");
                    assert_eq!(access.ipa.align_down(12).raw(), page);
                }
                Outcome::Resumed => {
                    let mapping = guest.query(&reader, Ipa::new(page)).unwrap().expect("mapped");
                    assert!(of_stage_2 && matches!(region, Region::Memory(_)), "{syndrome:?}");
                    assert!(!abort.wants_write() || mapping.dirty && mapping.permissions.write, "{syndrome:?}");
                }
                Outcome::Retry => assert_eq!(code, 0x30, "{syndrome:?}"),
                Outcome::Reflect(_) => {
                    let forbidden = matches!(region, Region::Memory(attributes) if attributes != rwx);
                    let reason = !of_stage_2 || forbidden || !matches!(region, Region::Memory(_));
                    assert!(reason, "{syndrome:?}");
                }
            }
            let index = match outcome {
                Outcome::Resumed => 0,
                Outcome::Retry => 1,
                Outcome::Mmio(_) => 2,
                Outcome::Reflect(_) => 3,
            };
            outcomes[index] += 1;
            let _ = guest.unmap(&reader, range(page, PAGE)).unwrap();
        });
        let resumed = outcomes[0] > 0;
        assert_eq!(resumed, matches!(region, Region::Memory(_)), "{region:?} {outcomes:?}");
        assert_eq!(outcomes[2] > 0, region == Region::Emulated);
        assert_eq!(outcomes.iter().sum::<u32>(), 2 * 64 * 32);
    }
    assert_eq!(mmu.memory().live(), 4);
    let elsewhere = Syndrome { esr: 0x17 << 26, far: VA, hpfar: 0 };
    let loaded = guest.load(&reader).unwrap();
    let smc = loaded.resolve(&reader, &Memory::at(0, RW), elsewhere);
    assert_eq!(smc, Err(FaultError::NotAnAbort(NotAnAbort { exception_class: 0x17 })));
}
