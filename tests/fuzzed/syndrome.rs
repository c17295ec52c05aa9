//! Whatever registers a CPU reports: they are decoded, answered and reflected without a panic, and by the rules.

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::Content;
use stage2::fault::decode::{Abort, Access, FaultAddress, MmioAccess, decode};
use stage2::fault::inject::{GuestFault, GuestRegisters};
use stage2::fault::syndrome::{FaultClass, Par};
use stage2::fault::{Backing, FaultError, Outcome, Page, Region, Syndrome, Unavailable};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule4K, IdRegisters};
use stage2::mmu::Mmu;
use stage2::model::{ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::{Loaded, Stage2};

const PAGE: u64 = 4096;
const IPA_SIZE: u64 = 1 << 40;
const CLASSES: [u64; 2] = [0x20, 0x24];

/// What is read from the bytes, in this order.
struct Input {
    syndrome: Syndrome,
    par: u64,
    registers: GuestRegisters,
    /// A register of the guest that is stored or loaded.
    register: u64,
    /// What the embedder says of the address.
    choices: u8,
}

fn read(bytes: &[u8]) -> Option<Input> {
    let (words, rest) = bytes.split_at_checked(9 * 8)?;
    let word = |index: usize| u64::from_le_bytes(words.as_chunks::<8>().0[index]);
    let choices = rest.first().copied().unwrap_or_default();
    Some(Input {
        // Mostly aborts, for anything else is soon over.
        syndrome: Syndrome {
            esr: if choices & 0x80 == 0 {
                word(0) & !(0x3f << 26) | CLASSES[usize::from(choices >> 6)] << 26
            } else {
                word(0)
            },
            far: word(1),
            hpfar: word(2),
        },
        par: word(3),
        registers: GuestRegisters {
            elr_el2: word(4),
            spsr_el2: word(5),
            sctlr_el1: word(6),
            vbar_el1: word(7),
            memory_tagging: choices & 1 != 0,
            non_maskable_interrupts: choices & 2 != 0,
        },
        register: word(8),
        choices,
    })
}

/// One exception; returns how many that were.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let Some(input) = read(bytes) else { return 0 };
    let trusted = Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 5, ..IdRegisters::default() });
    for features in [trusted, trusted.without_hpfar()] {
        let class = input.syndrome.esr >> 26 & 0x3f;
        match decode(input.syndrome, &features) {
            Ok(abort) => {
                assert!(CLASSES.contains(&class));
                check_address(&abort, &features);
                check_devices(&abort, &input);
                check_reflection(&abort, &input);
            }
            Err(error) => {
                assert!(!CLASSES.contains(&class));
                assert_eq!(u64::from(error.exception_class), class);
            }
        }
    }
    let ipa = Par::new(input.par).ipa(input.syndrome.far);
    assert_eq!(ipa.is_none(), input.par & 1 == 1);
    assert!(ipa.is_none_or(|ipa| (ipa.raw() ^ input.syndrome.far) % PAGE == 0 && ipa.raw() >> 52 == 0));
    check_resolution(&input);
    1
}

/// HPFAR_EL2 is believed where the architecture says that it is valid, and nowhere else.
fn check_address(abort: &Abort, features: &Features) {
    let Syndrome { far, hpfar, .. } = abort.syndrome;
    let page = (hpfar >> 4 & ((1 << 40) - 1)) << 12;
    let walk = abort.access == Access::Stage1Walk;
    let is_valid = match abort.class {
        FaultClass::Translation | FaultClass::AccessFlag | FaultClass::AddressSize => walk || features.hpfar_trusted(),
        FaultClass::Permission => walk,
        _ => false,
    };
    match abort.address {
        FaultAddress::Ipa(ipa) => {
            assert!(is_valid, "{abort:?}");
            assert_eq!(ipa.raw(), if walk { page } else { page | (far % PAGE) });
        }
        FaultAddress::NeedsTranslation { va } => assert!(!walk && !is_valid && va == far, "{abort:?}"),
        FaultAddress::Unknown => assert!(!is_valid, "{abort:?}"),
    }
    assert!(!(abort.wants_write() && abort.access == Access::Execute));
}

/// A device is asked only for what one register can hold.
fn check_devices(abort: &Abort, input: &Input) {
    let Some(access) = abort.mmio(Ipa::new(input.syndrome.far)) else { return };
    assert!(input.syndrome.esr >> 24 & 1 == 1 && matches!(abort.access, Access::Read | Access::Write));
    assert_eq!(access.write, abort.access == Access::Write);
    assert!(access.register.is_none_or(|register| register < 31));
    let (bits, stored) = (access.size.bits(), access.stored(input.register));
    assert!(bits == 64 || stored < 1 << bits);
    let loaded = access.loaded(stored);
    assert_eq!(
        access.stored(loaded),
        if access.sixty_four || bits <= 32 { stored } else { stored & u64::from(u32::MAX) }
    );
    assert!(access.sixty_four || loaded <= u64::from(u32::MAX));
    assert_eq!(MmioAccess { sign_extend: false, sixty_four: true, ..access }.loaded(stored), stored);
}

/// The guest enters its own vector at EL1 with interrupts masked, and finds where it was.
fn check_reflection(abort: &Abort, input: &Input) {
    use GuestFault::{AddressSize, Alignment, ExternalAbort, UnsupportedAtomicUpdate, UnsupportedExclusive};
    for fault in [ExternalAbort, AddressSize, Alignment, UnsupportedAtomicUpdate, UnsupportedExclusive] {
        let registers = input.registers;
        let mode = registers.spsr_el2 & 0x1f;
        let Ok(injection) = abort.reflect(fault).inject(&registers) else {
            assert!(![0b00000, 0b00100, 0b00101, 0b10000].contains(&mode));
            continue;
        };
        assert_eq!((injection.elr_el1, injection.spsr_el1), (registers.elr_el2, registers.spsr_el2));
        assert_eq!(injection.elr_el2 & !0x7ff, registers.vbar_el1 & !0x7ff);
        assert!([0, 0x200, 0x400, 0x600].contains(&(injection.elr_el2 & 0x7ff)));
        assert_eq!(injection.spsr_el2 & 0x3df, 0x3c5, "EL1h, and everything is masked");
        let from_el0 = mode == 0b00000 || mode == 0b10000;
        assert_eq!(injection.esr_el1 >> 26, (input.syndrome.esr >> 26 & 0x3f) + u64::from(!from_el0));
        assert_eq!(injection.esr_el1 & (1 << 24 | 1 << 7), 0, "ISV and S1PTW are for EL2 alone");
        assert!(injection.far_el1 == input.syndrome.far || injection.far_el1 == 0);
    }
}

type Memory = ModelMemory<Granule4K>;

/// A guest that each exception finds empty.
struct Guest {
    guest: &'static Stage2<'static, ModelArch, Memory>,
    reader: Reader<'static>,
    loaded: Loaded<'static, 'static, ModelArch, Memory>,
}

impl Guest {
    fn new() -> Self {
        let features = Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 5, ..IdRegisters::default() });
        let slots: &'static [CpuSlot] = Box::leak(Box::new([CpuSlot::new()]));
        let mmu = Box::leak(Box::new(Mmu::new(ModelArch::new(), ModelMemory::new(8), features, slots)));
        let geometry = Geometry::new(40, &features, GeometryOptions::default()).expect("40 bits");
        let guest = Box::leak(Box::new(Stage2::new(mmu, geometry, None).expect("memory for a root")));
        let reader = mmu.reader(CpuIndex(0)).expect("one CPU");
        let loaded = guest.load(&reader).expect("a VMID");
        Self { guest, reader, loaded }
    }
}

thread_local! {
    static GUEST: std::cell::RefCell<Guest> = std::cell::RefCell::new(Guest::new());
}

/// What the embedder says.
struct Answers<'i>(&'i Input);

impl Backing for Answers<'_> {
    fn region(&self, _ipa: Ipa) -> Region {
        match self.0.choices >> 2 & 3 {
            0 => Region::Emulated,
            1 => Region::Nothing,
            2 => Region::Memory(Attributes::normal(Permissions::RX)),
            _ => Region::Memory(Attributes::normal(Permissions::RWX)),
        }
    }

    fn page(&self, _ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        // Any frame, also what is none.
        let frame = Pa::new(if self.0.choices & 0x20 == 0 { self.0.register & !(PAGE - 1) } else { self.0.register });
        Ok(Page { frame, content: Content::New })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

/// A guest takes the exception: what is resumed is mapped, and nothing else is.
fn check_resolution(input: &Input) {
    GUEST.with_borrow_mut(|Guest { guest, reader, loaded }| {
        let result = loaded.resolve(reader, &Answers(input), input.syndrome);
        match result {
            Ok(Outcome::Mmio(access)) => assert!(input.choices >> 2 & 3 == 0 && access.ipa.raw() < IPA_SIZE),
            Ok(Outcome::Resumed | Outcome::Retry | Outcome::Reflect(_)) | Err(FaultError::NotAnAbort(_)) => {}
            Err(FaultError::BadFrame(frame)) => assert!(frame.raw() % PAGE != 0 || frame.raw() >= 1 << 48),
            Err(error) => panic!("{error:?}"),
        }
        let everything = IpaRange::new(Ipa::new(0), IPA_SIZE).expect("some");
        let unmapped = *guest.unmap(reader, everything).expect("nobody is in the way").peek();
        assert_eq!(unmapped.leaves, u64::from(result == Ok(Outcome::Resumed)), "{result:?}");
        // Tables come back before there are none, and nobody looks at what the machine was told.
        reader.quiescent();
        guest.reclaim(reader, 8).expect("a reader of this machine");
        guest.mmu().arch().take_events();
    });
}
