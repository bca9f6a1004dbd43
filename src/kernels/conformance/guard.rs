//! Buffers that end where the address space ends: a read past them is a SIGSEGV and not a lucky guess.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// A multiple of every page size that Linux has on these processors.
const PAGE: usize = 64 << 10;

/// A copy of a slice whose last element is followed by a page that cannot be touched.
pub(super) struct Guarded<T> {
    map: NonNull<std::ffi::c_void>,
    mapped: usize,
    start: *const T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    pub(super) fn new(values: &[T]) -> Guarded<T> {
        let size = size_of_val(values);
        let usable = size.next_multiple_of(PAGE);
        let mapped = usable + PAGE;
        let all = NonZeroUsize::new(mapped).unwrap();
        // SAFETY: a fresh private mapping; the guard and the copy stay inside it; `size` is a multiple of the alignment.
        #[allow(unsafe_code)]
        unsafe {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let map = mmap_anonymous(None, all, access, MapFlags::MAP_PRIVATE).unwrap();
            mprotect(map.byte_add(usable), PAGE, ProtFlags::PROT_NONE).unwrap();
            let start = map.byte_add(usable - size).cast::<T>().as_ptr();
            start.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Guarded { map, mapped, start, len: values.len() }
        }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` copied `len` values there, and nobody writes them.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start, self.len)
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; the slices of `deref` ended with the borrow.
        #[allow(unsafe_code)]
        unsafe {
            munmap(self.map, self.mapped).unwrap();
        }
    }
}
