//! The program's pages that only the start needed.
//!
//! A start reads most of the program once: the configuration, TLS, the metadata of all clients. What was touched stays mapped, and
//! counts as the daemon's memory for as long as it runs, though it is the file's and the system's cache has it anyway. So it is
//! unmapped between its steps and when it is over; whatever is run again comes back from the cache, 64 KiB at a time.

use std::{ffi::c_void, fs, io, ops::Range};

use rustix::mm::{Advice, madvise};

/// Unmaps the pages of the program and of its libraries that nobody has written to, if the system does.
pub fn unmap_clean() {
    match try_unmap() {
        Ok(bytes) => tracing::debug!(bytes, "clean pages of the program are unmapped"),
        Err(error) => tracing::debug!(%error, "clean pages of the program stay mapped"),
    }
}

/// Returns the bytes that were mapped.
fn try_unmap() -> io::Result<u64> {
    let mut unmapped = 0;
    for Mapping { range, resident } in clean(&fs::read_to_string("/proc/self/smaps")?) {
        let start = range.start as *mut c_void;
        // SAFETY: the pages are those of a file, may not be written to, and were not: whoever reads them, or runs them, gets the
        // same bytes from the file again.
        unsafe { madvise(start, range.len(), Advice::LinuxDontNeed)? };
        unmapped += resident;
    }
    Ok(unmapped)
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    /// Bytes.
    resident: u64,
}

/// Those of files that are mapped without the right to write, and of which no page is the process's own (as those are that the
/// loader has relocated).
fn clean(smaps: &str) -> Vec<Mapping> {
    let mut all: Vec<(Mapping, bool)> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(name) = first.strip_suffix(':') {
            let kibibytes = words.next().and_then(|size| size.parse::<u64>().ok());
            match (name, kibibytes, all.last_mut()) {
                ("Rss", Some(size), Some((mapping, _))) => mapping.resident = size * 1024,
                ("Private_Dirty" | "Shared_Dirty" | "Anonymous" | "Swap", Some(1..), Some((_, is_clean))) => {
                    *is_clean = false
                }
                _ => {}
            }
            continue;
        }
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        let range = first.split_once('-').and_then(|(start, end)| Some(address(start)?..address(end)?));
        let (rights, path) = (words.next(), words.nth(3));
        let is_of_a_file = path.is_some_and(|path| path.starts_with('/')) && matches!(rights, Some("r--p" | "r-xp"));
        if let Some(range) = range {
            all.push((Mapping { range, resident: 0 }, is_of_a_file));
        }
    }
    all.into_iter().filter(|(_, is_clean)| *is_clean).map(|(mapping, _)| mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_unmapped_that_can_be_read_from_their_file_again() {
        let mapping = |head: &str, dirty: u64| {
            format!(
                "{head}\nSize:                8 kB\nRss:                 8 kB\nPrivate_Dirty:       {dirty} kB\nVmFlags: rd ex\n"
            )
        };
        let smaps: String = [
            mapping("1000-3000 r--p 00000000 fe:00 7      /usr/bin/ingestd", 0),
            mapping("3000-5000 r-xp 00002000 fe:00 7      /usr/bin/ingestd", 0),
            mapping("5000-7000 r--p 00004000 fe:00 7      /usr/bin/ingestd", 4),
            mapping("7000-9000 rw-p 00006000 fe:00 7      /usr/bin/ingestd", 0),
            mapping("9000-b000 r--s 00000000 fe:00 8      /var/lib/ingestd/x", 0),
            mapping("b000-d000 r--p 00000000 00:00 0 ", 0),
            mapping("d000-f000 r-xp 00000000 00:00 0      [vdso]", 0),
        ]
        .concat();
        let of = |start| Mapping { range: start..start + 0x2000, resident: 8192 };
        assert_eq!(clean(&smaps), [of(0x1000), of(0x3000)]);
        assert_eq!(clean("nonsense\n"), []);
    }

    #[test]
    fn the_program_goes_on_without_them() {
        assert!(try_unmap().unwrap() > 0);
        assert!(try_unmap().unwrap() > 0, "what runs has come back");
    }
}
