//! How full the file system of `data.dir` is, and whether the daemon has to hold back because of it.

use std::{io, path::Path};

use bytesize::ByteSize;

use crate::config::DiskConfig;

/// Bytes of a file system, as `df` counts them: what is reserved for root is neither used nor available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    pub used: u64,
    pub available: u64,
    /// Files that it can still hold, of how many; none where it makes room for them as it goes.
    pub inodes: Option<Inodes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    pub free: u64,
    pub total: u64,
}

/// With fewer free inodes than this nothing is taken any more: the log, the spool, the archive and the store make new files,
/// each some at a time.
const LEAST_INODES: u64 = 64;

impl Inodes {
    fn are_short(self) -> bool {
        self.free < LEAST_INODES
    }

    /// Twice as many: the gap keeps the daemon from flapping.
    fn suffice(self) -> bool {
        self.free >= 2 * LEAST_INODES
    }
}

impl DiskUsage {
    /// used / (used + available), as `df` prints it; 0 for a file system that counts nothing.
    pub fn ratio(self) -> f64 {
        let total = self.used.saturating_add(self.available);
        if total == 0 { 0.0 } else { self.used as f64 / total as f64 }
    }

    fn percent(self) -> f64 {
        self.ratio() * 100.0
    }
}

/// Of the file system that holds a folder. May block for as long as that file system does.
///
/// # Errors
/// The file system cannot be asked.
pub fn usage(dir: &Path) -> io::Result<DiskUsage> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(DiskUsage {
        used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        // Btrfs and others have no number.
        inodes: (stat.f_files > 0).then_some(Inodes { free: stat.f_favail, total: stat.f_files }),
    })
}

/// Full at `max_used_percent`, and until the usage is below `resume_percent`: the gap keeps the daemon from flapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    Roomy,
    Full,
}

impl DiskState {
    /// The state after a reading.
    #[must_use]
    pub fn after(self, usage: DiskUsage, config: &DiskConfig) -> Self {
        let percent = usage.percent();
        if percent >= config.max_used_percent || usage.inodes.is_some_and(Inodes::are_short) {
            Self::Full
        } else if percent < config.resume_percent && usage.inodes.is_none_or(Inodes::suffice) {
            Self::Roomy
        } else {
            self
        }
    }
}

/// What clients, readiness and the log say of a full disk.
pub fn full_message(usage: DiskUsage, config: &DiskConfig, dir: &str, local_archive: bool) -> String {
    let (used, total) = (ByteSize(usage.used), ByteSize(usage.used.saturating_add(usage.available)));
    let who = if local_archive {
        "the archive is local and the daemon deletes none of it, so only you can help"
    } else {
        "uploads and aggregates go on and free what they can; if that is not enough"
    };
    if let Some(Inodes { free, total }) = usage.inodes.filter(|inodes| !inodes.suffice()) {
        return format!(
            "the file system of {dir} has {free} of {total} inodes left, so that no files can be made though there may be bytes; \
             {who}: remove files, or make the file system anew with more inodes; events are taken again with {} of them",
            2 * LEAST_INODES
        );
    }
    format!(
        "{:.1} % of the file system of {dir} is used ({used} of {total}), the limit is {} %; {who}: free space, or \
         raise disk.max_used_percent and disk.resume_percent: events are taken again below the latter, {} %",
        usage.percent(),
        config.max_used_percent,
        config.resume_percent,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(used: u64) -> DiskUsage {
        DiskUsage { used, available: 100 - used, inodes: None }
    }

    #[test]
    fn a_disk_is_full_at_the_limit_and_roomy_only_below_the_resume_mark() {
        let config = DiskConfig::default();
        let mut state = DiskState::Roomy;
        let states: Vec<_> = [69, 70, 69, 65, 64, 69, 71]
            .into_iter()
            .map(|used| {
                state = state.after(percent(used), &config);
                state
            })
            .collect();
        use DiskState::{Full, Roomy};
        assert_eq!(states, [Roomy, Full, Full, Full, Roomy, Roomy, Full]);
    }

    #[test]
    fn a_disk_without_inodes_is_full_and_said_to_be_for_want_of_them() {
        let config = DiskConfig::default();
        let mut state = DiskState::Roomy;
        let usage = |free| DiskUsage { inodes: Some(Inodes { free, total: 1000 }), ..percent(1) };
        let states: Vec<_> = [64, 63, 0, 127, 128]
            .into_iter()
            .map(|free| {
                state = state.after(usage(free), &config);
                state
            })
            .collect();
        use DiskState::{Full, Roomy};
        assert_eq!(states, [Roomy, Full, Full, Full, Roomy]);
        let message = full_message(usage(3), &config, "/data", true);
        assert!(message.contains("/data has 3 of 1000 inodes left") && message.contains("128"), "{message}");
    }

    #[test]
    fn what_is_reserved_for_root_does_not_count_and_an_empty_file_system_is_roomy() {
        assert_eq!(DiskUsage { used: 60, available: 20, inodes: None }.ratio(), 0.75);
        assert_eq!(DiskUsage { used: 0, available: 0, inodes: None }.ratio(), 0.0);
    }

    #[test]
    fn the_message_names_the_folder_the_limit_and_who_can_free_space() {
        let message = full_message(percent(71), &DiskConfig::default(), "/var/lib/ingestd", true);
        for part in ["71.0 %", "/var/lib/ingestd", "70 %", "only you", "disk.max_used_percent", "65 %"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn the_present_file_system_can_be_asked() {
        let usage = usage(&std::env::temp_dir()).unwrap();
        assert!((0.0..=1.0).contains(&usage.ratio()));
    }
}
