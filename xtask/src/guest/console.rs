//! What the guest said on its console: Linux's own lines and the workload's.

/// What can be read from `guest.log`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Console {
    /// Linux's banner.
    pub(crate) version: Option<String>,
    /// CPUs Linux says it brought up.
    pub(crate) vcpus: Option<u64>,
    /// The workload's last word; absent if it did not come that far.
    pub(crate) checks: Option<Checks>,
    /// The first line that says the guest's kernel is in trouble.
    pub(crate) trouble: Option<String>,
}

/// How many checks the workload made, and how many went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checks {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// What Linux prints when something went wrong that never should.
const TROUBLE: [&str; 8] = [
    "BUG:",
    "Initramfs unpacking failed",
    "Internal error:",
    "Kernel panic",
    "Oops",
    "Unable to handle kernel",
    "cut here",
    "detected stall",
];

impl Console {
    /// Reads the whole log; lines it does not know are the guest's own business.
    pub(crate) fn read(log: &str) -> Self {
        let mut console = Self::default();
        for line in log.lines().map(str::trim_end) {
            let text = without_timestamp(line);
            if text.starts_with("Linux version ") && console.version.is_none() {
                console.version = Some(text.to_owned());
            } else if let Some(rest) = text.strip_prefix("smp: Brought up ") {
                console.vcpus = cpus_brought_up(rest);
            } else if let Some(rest) = text.strip_prefix("STAGE2 checks_done=") {
                console.checks = checks(rest);
            } else if console.trouble.is_none() && TROUBLE.iter().any(|sign| text.contains(sign)) {
                console.trouble = Some(text.to_owned());
            }
        }
        console
    }
}

/// `[    0.092466] smp: ...` without the time.
fn without_timestamp(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, text)) if time.trim().parse::<f64>().is_ok() => text,
        _ => line,
    }
}

/// `1 node, 3 CPUs`.
fn cpus_brought_up(text: &str) -> Option<u64> {
    let (_, cpus) = text.split_once(", ")?;
    cpus.split(' ').next()?.parse().ok()
}

/// `399 checks_failed=0`.
fn checks(text: &str) -> Option<Checks> {
    let (done, failed) = text.split_once(" checks_failed=")?;
    Some(Checks { done: done.parse().ok()?, failed: failed.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x410fd083]\r
[    0.000000] Linux version 6.1.0-50-arm64 (debian-kernel@lists.debian.org) #1 SMP\r
[    0.092466] smp: Brought up 1 node, 3 CPUs\r
STAGE2 cpus=3\r
STAGE2 progress checks_done=24 checks_failed=0\r
STAGE2 checks_done=399 checks_failed=1\r
[   24.531206] reboot: Power down\r
";

    #[test]
    fn the_banner_the_cpus_and_the_checks_are_found() {
        let console = Console::read(LOG);
        let banner = "Linux version 6.1.0-50-arm64 (debian-kernel@lists.debian.org) #1 SMP";
        assert_eq!(console.version.as_deref(), Some(banner));
        assert_eq!(console.vcpus, Some(3));
        assert_eq!(console.checks, Some(Checks { done: 399, failed: 1 }));
        assert_eq!(console.trouble, None);
    }

    #[test]
    fn progress_is_not_the_last_word() {
        let console = Console::read("STAGE2 progress checks_done=24 checks_failed=0\n");
        assert_eq!(console.checks, None);
    }

    #[test]
    fn trouble_is_found_and_the_first_line_kept() {
        let log = "[    9.8] Kernel panic - not syncing: no init\n[    9.9] Internal error: 2\n";
        let trouble = Console::read(log).trouble;
        assert_eq!(trouble.as_deref(), Some("Kernel panic - not syncing: no init"));
    }

    #[test]
    fn cut_off_lines_and_noise_say_nothing() {
        for log in ["", "STAGE2 checks_done=", "STAGE2 checks_done=1 checks_failed=", "[", "] ", "[x] y"] {
            assert_eq!(Console::read(log), Console::default(), "{log}");
        }
        assert_eq!(Console::read("smp: Brought up 1 node").vcpus, None);
    }
}
