//! One guest against a flat map of its pages: operations by several CPUs on the modelled MMU, which is as bad as the
//! architecture allows and ends the test at whatever must not happen. After each step the tree is what the map says; after
//! each harvest the replica is what the guest reads; and at the end nothing is left.
//!
//! The sequence comes from bytes ([`steps`]), so that a fuzzer, a property test and a kept corpus do the same.

#[path = "../../support/features.rs"]
mod features;
mod guest;
mod pages;
mod session;
pub(crate) mod steps;

use stage2::addr::Ipa;
use stage2::cpu::CpuSlot;
use stage2::dirty::{DirtyBitmap, Word};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, Granule4K, Granule16K, Granule64K, IdRegisters};
use stage2::mmu::Mmu;
use stage2::model::ModelMmu;
use stage2::stage2::Stage2;

use self::features::RICH;

use self::session::Session;
use self::steps::{CPUS, Setting, Step};

/// Does all that `bytes` say; returns how many operations that were.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let Some((setting, steps)) = steps::read(bytes) else { return 0 };
    let choose = |sizes: &[u8]| sizes[usize::from(setting.size) % sizes.len()];
    match setting.granule {
        // 40, 42 and 43 bits have 2, 8 and 16 root tables, 48 bits four levels.
        0 => on::<Granule4K>(choose(&[40, 32, 36, 42, 43, 44, 48]), setting, steps),
        1 => on::<Granule16K>(choose(&[40, 32, 47, 48]), setting, steps),
        _ => on::<Granule64K>(choose(&[42, 32, 44, 48]), setting, steps),
    }
}

/// CPUs with everything the library makes use of, with that and hardware updates, and with nothing optional.
fn features(setting: Setting) -> Features {
    Features::from_id_registers(&match setting.features % 3 {
        0 => RICH,
        1 => IdRegisters { id_aa64mmfr1_el1: RICH.id_aa64mmfr1_el1 | 2, ..RICH },
        _ => IdRegisters { id_aa64mmfr0_el1: RICH.id_aa64mmfr0_el1, ..IdRegisters::default() },
    })
}

/// One machine, and one guest after another.
fn on<G: Granule>(ipa_bits: u8, setting: Setting, mut steps: impl Iterator<Item = Step>) -> u64 {
    let features = features(setting);
    let options = GeometryOptions::default().with_hardware_update(features.hardware_update());
    let geometry = Geometry::<G>::new(ipa_bits, &features, options).expect("all of these sizes are possible");
    let model = ModelMmu::new::<G>(CPUS.into(), setting.seed);
    let slots: Vec<CpuSlot> = (0..CPUS).map(|_| CpuSlot::new()).collect();
    // Four leaf tables' worth of pages are logged.
    let words: Vec<Word> = (0..4 * G::ENTRIES / 64).map(|_| Word::new(0)).collect();
    // The root comes on top.
    let tables = setting.tables + geometry.root_tables();
    let mmu = Mmu::new(model.clone(), model.memory::<G>(tables), features, &slots);
    let mut done = 0;
    loop {
        let seat = model.cpu(0);
        let guest = Stage2::new(&mmu, geometry, Some(DirtyBitmap { base: Ipa::new(0), words: &words }));
        let guest = guest.expect("there is nothing but this root");
        drop(seat);
        let mut session = Session::new(&guest, &model, tables);
        let goes_on = session.run(&mut steps, &mut done);
        session.end();
        let _seat = model.cpu(0);
        let reader = mmu.reader(stage2::cpu::CpuIndex(0)).expect("the session's are gone");
        assert!(guest.teardown(&reader).is_ok());
        assert_eq!(mmu.memory().live(), 0);
        if !goes_on {
            break;
        }
    }
    model.assert_nothing_leaked();
    done
}
