//! Read-only bytes that are shared: a range of a mapped file, or memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A file in memory, as far as it is touched.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    file: File,
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Maps all of `file`, read-only.
#[allow(unsafe_code)]
pub fn map(file: File) -> std::io::Result<Arc<Mapping>> {
    // SAFETY: the mapping is read-only, so nothing in this process writes to it; but the kernel does not
    // stop another process from doing so. Whoever installs checkpoints guarantees that: files are put in place by
    // rename and never changed afterwards. Should one be overwritten, codes and scales change under checks that were
    // made at start, which gives wrong numbers and touches no other memory: no length or offset that was read
    // from the mapping is used unchecked. Should one be truncated, the next touch raises SIGBUS and the service restarts.
    let map = unsafe { Mmap::map(&file) }?;
    if huge_pages() {
        advise(&map, Advice::HugePage, 0..map.len());
    }
    Ok(Arc::new(Mapping { map, file }))
}

/// With pages of 4 KiB a huge one has 2 MiB, which are soon read.
const SMALL_PAGE: usize = 4096;

/// Whether memory that is read from end to end is asked for in huge pages. Not beside pages of 16 KiB, as Pi OS has on a Pi 5: the 32 MiB
/// of a huge one are more than such a board has to spare in one piece.
pub fn huge_pages() -> bool {
    page_size().is_ok_and(|bytes| bytes == SMALL_PAGE)
}

fn page_size() -> std::io::Result<usize> {
    Ok(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.map_or(SMALL_PAGE, |bytes| bytes as usize))
}

/// Tells the kernel what to expect. A hint: what the system makes of it changes no result.
fn advise(map: &Mmap, advice: Advice, range: Range<usize>) {
    if let Err(error) = map.advise_range(advice, range.start, range.len()) {
        tracing::debug!("madvise: {error}");
    }
}

impl Mapping {
    /// Bytes of the file that are in the page cache. The kernel tells only who owns the file or may write to it; others hear
    /// that all of it is there.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    #[allow(unsafe_code)]
    pub fn cached(&self) -> std::io::Result<u64> {
        let page = page_size()?;
        let mut pages = vec![0_u8; self.map.len().div_ceil(page)];
        let start = self.map.as_ptr().cast_mut().cast();
        // SAFETY: the range is the whole mapping, which starts at a page, and `pages` has a byte for each of its pages; the
        // call writes to `pages` only.
        nix::errno::Errno::result(unsafe { nix::libc::mincore(start, self.map.len(), pages.as_mut_ptr()) })?;
        Ok(present(&pages, page, self.map.len()))
    }
}

/// Bytes of a mapping of `len` bytes that are in memory, by what mincore says of its pages of `page` bytes.
fn present(pages: &[u8], page: usize, len: usize) -> u64 {
    let there = pages.iter().enumerate().filter(|(_, state)| *state & 1 == 1);
    there.map(|(at, _)| page.min(len.saturating_sub(at * page)) as u64).sum()
}

/// Cheap to clone; the mapping lives as long as its last range.
#[derive(Clone, Debug)]
pub struct Bytes(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Mapped(Arc<Mapping>, Range<usize>),
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// `range` of `map`.
    ///
    /// # Panics
    ///
    /// When the range is not inside the map.
    pub fn mapped(map: &Arc<Mapping>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= map.len(), "{range:?} of {} bytes", map.len());
        Bytes(Repr::Mapped(map.clone(), range))
    }

    /// Tells the kernel to map these in small pages, so that little more than what is touched becomes memory of this process.
    pub fn map_in_small_pages(&self) {
        if let Repr::Mapped(map, range) = &self.0 {
            advise(&map.map, Advice::NoHugePage, range.clone());
        }
    }

    /// Tells the kernel that these are read here and there, so that it reads no more than what is asked for.
    pub fn read_at_random(&self) {
        self.map_in_small_pages();
        if let Repr::Mapped(map, range) = &self.0 {
            advise(&map.map, Advice::Random, range.clone());
        }
    }

    /// Takes mapped pages out of this process's memory; they come back from the page cache when they are read.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        if let Repr::Mapped(map, range) = &self.0 {
            // SAFETY: the mapping is of a file, shared and read-only: what is dropped is a view of the page cache, and
            // the next read finds the same bytes.
            let released =
                unsafe { map.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
            if let Err(error) = released {
                tracing::debug!("madvise: {error}");
            }
        }
    }

    /// Reads mapped pages and keeps them in memory, until the mapping ends; nothing to do for memory of the process. How
    /// many bytes that are.
    ///
    /// # Errors
    ///
    /// When the limit of locked memory (RLIMIT_MEMLOCK) does not allow it, or memory is too short.
    #[allow(unsafe_code)]
    pub fn lock(&self) -> std::io::Result<u64> {
        let Repr::Mapped(map, range) = &self.0 else { return Ok(0) };
        let start = std::ptr::NonNull::from(&map.map[range.clone()]).cast();
        // SAFETY: the range lies in the mapping, which ends its locks when it ends; locking changes no byte of it.
        unsafe { nix::sys::mman::mlock(start, range.len()) }?;
        Ok(range.len() as u64)
    }

    /// Takes a [`Bytes::lock`] back.
    #[allow(unsafe_code)]
    pub fn unlock(&self) {
        if let Repr::Mapped(map, range) = &self.0 {
            let start = std::ptr::NonNull::from(&map.map[range.clone()]).cast();
            // SAFETY: as above.
            if let Err(error) = unsafe { nix::sys::mman::munlock(start, range.len()) } {
                tracing::debug!("munlock: {error}");
            }
        }
    }

    /// Copies what lies at `at` to `out` by reading the file, past the mapping: for what is looked up here and there, of which
    /// the kernel would map what lies around it, too.
    ///
    /// # Panics
    ///
    /// When that is not inside.
    pub fn read_at(&self, at: usize, out: &mut [u8]) {
        let bytes = &self[at..][..out.len()];
        match &self.0 {
            Repr::Mapped(map, range) if map.file.read_exact_at(out, (range.start + at) as u64).is_ok() => {}
            // An error of the disk is met again here, as everywhere in the mapping.
            _ => out.copy_from_slice(bytes),
        }
    }

    /// The 32-bit little-endian word `i`; `None` past the end.
    pub fn word(&self, i: usize) -> Option<u32> {
        self.as_chunks().0.get(i).map(|&word| u32::from_le_bytes(word))
    }

    /// Number of whole 32-bit words.
    pub fn words(&self) -> usize {
        self.len() / 4
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Mapped(map, range) => &map.map[range.clone()],
            Repr::Owned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(Repr::Owned(bytes.into()))
    }
}

impl FromIterator<u32> for Bytes {
    fn from_iter<T: IntoIterator<Item = u32>>(words: T) -> Bytes {
        words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_any_size_are_counted_to_the_end_of_the_file() {
        for page in [4 << 10, 16 << 10, 64 << 10] {
            for (pages, len, there) in [
                (&[1, 1][..], 2 * page, 2 * page),
                (&[0, 1], page + 1, 1),
                // The upper bits are reserved.
                (&[0xfe, 0xff, 0], 3 * page - 5, page),
                (&[1, 0], page + 7, page),
                (&[], 0, 0),
            ] {
                assert_eq!(present(pages, page, len), there as u64, "{pages:?} of {page}, {len}");
            }
        }
    }
}
