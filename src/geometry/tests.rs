//! Claims about [`Geometry`], against values worked out by hand from the Arm ARM and against its own pseudocode.

use super::vtcr::{VTCR_EL2, VTTBR_EL2};
use super::*;
use proptest::prelude::*;

/// CPUs with every granule and the given `PARange` field; 16-bit VMIDs and FEAT_HAFDBS if `rich`.
fn features(pa_range: u64, rich: bool) -> Features {
    Features::from_id_registers(&IdRegisters {
        id_aa64mmfr0_el1: 1 << 20 | pa_range,
        id_aa64mmfr1_el1: if rich { 0x22 } else { 0 },
        ..IdRegisters::default()
    })
}

fn geometry<G: Granule>(ipa_bits: u8) -> Geometry<G> {
    Geometry::new(ipa_bits, &features(5, true), GeometryOptions::default()).unwrap()
}

/// Start level, root order, `SL0` and `T0SZ`.
fn shape<G: Granule>(ipa_bits: u8) -> (Level, u32, u64, u64) {
    let geometry = geometry::<G>(ipa_bits);
    let vtcr = geometry.vtcr().raw();
    (geometry.start_level(), geometry.root_order(), VTCR_EL2::SL0.read(vtcr), VTCR_EL2::T0SZ.read(vtcr))
}

#[test]
fn a_4k_tree_has_the_shape_that_the_manual_gives_for_each_size() {
    use Level::*;
    assert_eq!(shape::<Granule4K>(32), (L2, 2, 0b00, 32));
    assert_eq!(shape::<Granule4K>(34), (L2, 4, 0b00, 30));
    assert_eq!(shape::<Granule4K>(35), (L1, 0, 0b01, 29));
    assert_eq!(shape::<Granule4K>(36), (L1, 0, 0b01, 28));
    assert_eq!(shape::<Granule4K>(39), (L1, 0, 0b01, 25));
    assert_eq!(shape::<Granule4K>(40), (L1, 1, 0b01, 24));
    assert_eq!(shape::<Granule4K>(42), (L1, 3, 0b01, 22));
    assert_eq!(shape::<Granule4K>(43), (L1, 4, 0b01, 21));
    assert_eq!(shape::<Granule4K>(44), (L0, 0, 0b10, 20));
    assert_eq!(shape::<Granule4K>(48), (L0, 0, 0b10, 16));
}

#[test]
fn a_16k_tree_has_the_shape_that_the_manual_gives_for_each_size() {
    use Level::*;
    assert_eq!(shape::<Granule16K>(32), (L2, 0, 0b01, 32));
    assert_eq!(shape::<Granule16K>(36), (L2, 0, 0b01, 28));
    assert_eq!(shape::<Granule16K>(37), (L2, 1, 0b01, 27));
    assert_eq!(shape::<Granule16K>(40), (L2, 4, 0b01, 24));
    assert_eq!(shape::<Granule16K>(41), (L1, 0, 0b10, 23));
    assert_eq!(shape::<Granule16K>(47), (L1, 0, 0b10, 17));
    assert_eq!(shape::<Granule16K>(48), (L1, 1, 0b10, 16));
}

#[test]
fn a_64k_tree_has_the_shape_that_the_manual_gives_for_each_size() {
    use Level::*;
    assert_eq!(shape::<Granule64K>(32), (L2, 0, 0b01, 32));
    assert_eq!(shape::<Granule64K>(42), (L2, 0, 0b01, 22));
    assert_eq!(shape::<Granule64K>(43), (L2, 1, 0b01, 21));
    assert_eq!(shape::<Granule64K>(46), (L2, 4, 0b01, 18));
    assert_eq!(shape::<Granule64K>(47), (L1, 0, 0b10, 17));
    assert_eq!(shape::<Granule64K>(48), (L1, 0, 0b10, 16));
}

#[test]
fn the_vtcr_of_40_bits_on_a_plain_cpu_is_the_value_known_from_other_hypervisors() {
    let plain = Geometry::<Granule4K>::new(40, &features(2, false), GeometryOptions::default()).unwrap();
    assert_eq!(plain.vtcr().raw(), 0x8002_3558);
}

#[test]
fn the_vtcr_says_vmid_size_granule_output_size_and_hardware_update() {
    let with = |update| {
        let options = GeometryOptions::default().with_hardware_update(update);
        Geometry::<Granule4K>::new(40, &features(2, true), options).unwrap().vtcr().raw()
    };
    assert_eq!(with(HardwareUpdate::None), 0x800a_3558);
    assert_eq!(with(HardwareUpdate::AccessFlag), 0x802a_3558);
    assert_eq!(with(HardwareUpdate::AccessFlagAndDirty), 0x806a_3558);
    assert_eq!(VTCR_EL2::TG0.read(geometry::<Granule16K>(40).vtcr().raw()), 0b10);
    assert_eq!(VTCR_EL2::TG0.read(geometry::<Granule64K>(40).vtcr().raw()), 0b01);
    assert_eq!(VTCR_EL2::PS.read(geometry::<Granule4K>(40).vtcr().raw()), 0b101);
}

#[test]
fn an_output_size_of_52_bits_is_used_as_one_of_48() {
    let large = Geometry::<Granule4K>::new(48, &features(6, false), GeometryOptions::default()).unwrap();
    assert_eq!(large.pa_bits(), 48);
    assert_eq!(VTCR_EL2::PS.read(large.vtcr().raw()), 0b101);
}

#[test]
fn what_the_cpus_cannot_do_is_a_typed_error() {
    let new = |bits, pa_range| Geometry::<Granule4K>::new(bits, &features(pa_range, false), GeometryOptions::default());
    assert_eq!(new(31, 5), Err(GeometryError::IpaTooSmall { min: 32 }));
    assert_eq!(new(0, 5), Err(GeometryError::IpaTooSmall { min: 32 }));
    assert_eq!(new(49, 6), Err(GeometryError::IpaTooLarge { max: 48 }));
    assert_eq!(new(255, 6), Err(GeometryError::IpaTooLarge { max: 48 }));
    assert_eq!(new(41, 2), Err(GeometryError::IpaTooLarge { max: 40 }));
    let armv8 = Features::from_id_registers(&IdRegisters::default());
    assert_eq!(
        Geometry::<Granule16K>::new(32, &armv8, GeometryOptions::default()),
        Err(GeometryError::GranuleUnsupported)
    );
    let dirty = GeometryOptions::default().with_hardware_update(HardwareUpdate::AccessFlagAndDirty);
    assert_eq!(
        Geometry::<Granule4K>::new(32, &armv8, dirty),
        Err(GeometryError::HardwareUpdateUnsupported { available: HardwareUpdate::None })
    );
}

#[test]
fn the_root_is_aligned_to_all_its_tables_together() {
    let geometry = geometry::<Granule4K>(40);
    let vttbr = geometry.vttbr(Pa::new(0x4000_2000), 0xabcd, true).unwrap();
    assert_eq!(vttbr.raw(), 0xabcd_0000_4000_2001);
    assert_eq!((vttbr.vmid(), vttbr.root()), (0xabcd, Pa::new(0x4000_2000)));
    assert_eq!(VTTBR_EL2::CNP.read(geometry.vttbr(Pa::new(0), 0, false).unwrap().raw()), 0);
    assert_eq!(
        geometry.vttbr(Pa::new(0x4000_1000), 0, false),
        Err(VttbrError::RootMisaligned { root: Pa::new(0x4000_1000), alignment: 13 })
    );
}

#[test]
fn a_root_beyond_the_physical_address_size_is_refused() {
    let geometry = geometry::<Granule4K>(48);
    let root = Pa::new(1 << 48);
    assert_eq!(geometry.vttbr(root, 0, false), Err(VttbrError::RootBeyondPaSize { root, pa_bits: 48 }));
    assert!(geometry.vttbr(Pa::new((1 << 48) - 0x1000), 0, false).is_ok());
}

#[test]
fn a_vmid_never_loses_bits() {
    let narrow = Geometry::<Granule4K>::new(40, &features(2, false), GeometryOptions::default()).unwrap();
    assert!(narrow.vttbr(Pa::new(0), 0xff, false).is_ok());
    assert_eq!(narrow.vttbr(Pa::new(0), 0x100, false), Err(VttbrError::VmidTooWide { vmid: 0x100 }));
}

#[test]
fn a_range_is_contained_if_its_last_byte_is() {
    let geometry = geometry::<Granule4K>(40);
    let range = |start, bytes| IpaRange::new(Ipa::new(start), bytes).unwrap();
    assert!(geometry.contains(range(0, 1 << 40)));
    assert!(!geometry.contains(range(0x1000, 1 << 40)));
    assert!(!geometry.contains(range(u64::MAX, 1)));
}

#[test]
fn a_tiny_tree_has_the_levels_and_roots_asked_for() {
    let tiny = Geometry::tiny(3, 1).unwrap();
    assert_eq!((tiny.start_level(), tiny.root_tables(), tiny.ipa_size()), (Level::L1, 2, 16 * 0x1000));
    assert_eq!(tiny.root_index(Ipa::new(8 * 0x1000)), 1);
    assert_eq!(Geometry::tiny(0, 0), None);
    assert_eq!(Geometry::tiny(5, 0), None);
    assert_eq!(Geometry::tiny(2, 5), None);
}

/// The Arm ARM's `AArch64.S2InvalidSL` and `AArch64.S2InconsistentSL`, without FEAT_LPA2 and FEAT_TTST, as an oracle: a
/// walk with this `VTCR_EL2` on CPUs with `pa_max` bits does not fault for its start level.
fn start_level_is_valid<G: Granule>(vtcr: Vtcr, pa_max: u8) -> bool {
    let sl0 = VTCR_EL2::SL0.read(vtcr.raw());
    let (start, pa_needed) = match (G::TG0, sl0) {
        (0b00, 0b00) => (2, 0),
        (0b00, 0b01) => (1, 0),
        (0b00, 0b10) => (0, 44),
        (0b10, 0b00) | (0b01, 0b00) => (3, 0),
        (0b10, 0b01) | (0b01, 0b01) => (2, 0),
        (0b10, 0b10) => (1, 42),
        (0b01, 0b10) => (1, 44),
        _ => return false,
    };
    let smallest = (3 - start) * G::INDEX_BITS + G::PAGE_SHIFT + 1;
    let largest = smallest + (G::INDEX_BITS - 1) + 4;
    let ipa_bits = 64 - VTCR_EL2::T0SZ.read(vtcr.raw()) as u32;
    pa_max >= pa_needed && (smallest..=largest).contains(&ipa_bits)
}

fn check_every_size<G: Granule>() {
    for pa_field in 0..=7 {
        let features = features(pa_field, true);
        let pa_max = features.pa_range().bits();
        for ipa_bits in 0..=u8::MAX {
            let geometry = Geometry::<G>::new(ipa_bits, &features, GeometryOptions::default());
            assert_eq!(geometry.is_ok(), (32..=48.min(pa_max)).contains(&ipa_bits));
            let Ok(geometry) = geometry else { continue };
            assert!(start_level_is_valid::<G>(geometry.vtcr(), pa_max), "{geometry:?}");
            assert!(geometry.root_order() <= 4);
            // One level fewer would need more than 16 root tables, or leave no table above the leaves.
            let fewer = geometry.start_level().child().unwrap();
            let fewer_bits = G::shift(fewer) + G::INDEX_BITS;
            assert!(fewer == Level::LEAF || ipa_bits as u32 > fewer_bits + 4, "{geometry:?}");
        }
    }
}

#[test]
fn every_size_that_the_cpus_can_translate_has_a_valid_start_level_with_the_fewest_levels() {
    check_every_size::<Granule4K>();
    check_every_size::<Granule16K>();
    check_every_size::<Granule64K>();
}

/// Splits `ipa` into root index, indices and offset as a walk does, and puts it together again.
fn reassembled<G: Granule>(geometry: Geometry<G>, ipa: Ipa) -> u64 {
    let mut level = geometry.start_level();
    let mut address = geometry.root_index(ipa) as u64;
    assert!(geometry.root_index(ipa) < geometry.root_tables());
    loop {
        assert!(G::index(ipa, level) < G::ENTRIES);
        address = address << G::INDEX_BITS | G::index(ipa, level) as u64;
        match level.child() {
            Some(child) => level = child,
            None => return address << G::PAGE_SHIFT | ipa.raw() & (G::PAGE_SIZE - 1),
        }
    }
}

proptest! {
    #[test]
    fn indices_and_offset_are_the_address(bits in 32u8..=48, raw: u64) {
        let ipa = Ipa::new(raw & ((1 << bits) - 1));
        prop_assert_eq!(reassembled(geometry::<Granule4K>(bits), ipa), ipa.raw());
        prop_assert_eq!(reassembled(geometry::<Granule16K>(bits), ipa), ipa.raw());
        prop_assert_eq!(reassembled(geometry::<Granule64K>(bits), ipa), ipa.raw());
    }

    #[test]
    fn indices_and_offset_are_the_address_in_a_tiny_tree(levels in 1u32..=4, order in 0u32..=4, raw: u64) {
        let geometry = Geometry::tiny(levels, order).unwrap();
        let ipa = Ipa::new(raw & (geometry.ipa_size() - 1));
        prop_assert_eq!(reassembled(geometry, ipa), ipa.raw());
    }

    #[test]
    fn no_address_indexes_beyond_the_root(bits in 32u8..=48, raw: u64) {
        let geometry = geometry::<Granule4K>(bits);
        prop_assert!(geometry.root_index(Ipa::new(raw)) < geometry.root_tables());
    }
}
