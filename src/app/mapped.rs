//! The program's pages that only the start needed.
//!
//! A start reads most of the program once: the configuration, TLS, the metadata of all clients. What was touched stays mapped, and
//! counts as the daemon's memory for as long as it runs, though it is the file's and the system's cache has it anyway. So it is
//! unmapped between its steps and when it is over; whatever is run again comes back from the cache, 64 KiB at a time.

use std::ffi::{c_int, c_void};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};

/// Unmaps the pages of the program, and of its libraries, that can only be read and run.
pub fn unmap_clean() {
    let mut bytes = 0_usize;
    // SAFETY: `unmap` takes what it is given here, and is called within this call alone.
    unsafe { libc::dl_iterate_phdr(Some(unmap), (&raw mut bytes).cast()) };
    tracing::debug!(bytes, "the program's pages are unmapped until they are needed");
}

/// The same where more bytes of files are mapped than these. Whether no more are mapped now: else it is other files that are.
pub fn unmap_above(bytes: u64) -> bool {
    let is_more = || mapped().is_some_and(|mapped| mapped > bytes);
    if !is_more() {
        return true;
    }
    unmap_clean();
    !is_more()
}

/// Bytes of files, the program's among them, that are mapped now.
fn mapped() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(2)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// Of one object, the program or a library, while the loader holds its lock: none is unloaded meanwhile, and those that are being
/// loaded are not among them.
unsafe extern "C" fn unmap(object: *mut libc::dl_phdr_info, _: usize, bytes: *mut c_void) -> c_int {
    // SAFETY: the loader gives an object that is alive during this call, and the pointer that `unmap_clean` passes on.
    let (object, bytes) = unsafe { (&*object, &mut *bytes.cast::<usize>()) };
    for index in 0..usize::from(object.dlpi_phnum) {
        // SAFETY: the object has so many headers.
        let segment = unsafe { &*object.dlpi_phdr.add(index) };
        if segment.p_type != libc::PT_LOAD || segment.p_flags & libc::PF_W != 0 {
            continue;
        }
        let from = (object.dlpi_addr as usize).wrapping_add(segment.p_vaddr as usize);
        let to = from.wrapping_add(segment.p_memsz as usize);
        // Whole pages alone: another segment begins in the last one.
        let (from, to) = (from.next_multiple_of(page_size()), to & !(page_size() - 1));
        if from >= to {
            continue;
        }
        // SAFETY: a segment without the right to write is mapped from its file as it is, and nobody has written to it, since what the
        // loader relocates is in segments with that right: whoever reads its pages, or runs them, gets the same bytes again.
        if unsafe { madvise(from as *mut c_void, to - from, Advice::LinuxDontNeed) }.is_ok() {
            *bytes += to - from;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_with_fewer_of_its_pages() {
        let before = mapped().unwrap();
        assert!(unmap_above(before * 2));
        unmap_above(before / 2);
        let after = mapped().unwrap();
        assert!(after < before, "{before} bytes, and then {after}");
        assert!(!unmap_above(1), "what runs is mapped");
    }
}
