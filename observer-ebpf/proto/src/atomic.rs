//! Atomics for state shared by the two directions of a connection, which may run on different CPUs.
//!
//! The BPF target has no stable read-modify-write operations, and a relaxed one whose result is used is miscompiled
//! there (llvm#210280). Operations with a result are therefore acquire-release, which an object test enforces;
//! [`add32`] and [`add64`] are relaxed, since they have none.

#[cfg(target_arch = "bpf")]
mod imp {
    use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg};

    #[inline(always)]
    pub(super) unsafe fn or(word: *mut u32, bits: u32) -> u32 {
        // SAFETY: the caller's pointer is valid and aligned, here and below.
        unsafe { atomic_or::<u32, u32, { AtomicOrdering::AcqRel }>(word, bits) }
    }
    #[inline(always)]
    pub(super) unsafe fn and(word: *mut u32, bits: u32) -> u32 {
        // SAFETY: as above.
        unsafe { atomic_and::<u32, u32, { AtomicOrdering::AcqRel }>(word, bits) }
    }
    #[inline(always)]
    pub(super) unsafe fn fetch_add(word: *mut u32, by: u32) -> u32 {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(word, by) }
    }
    #[inline(always)]
    pub(super) unsafe fn add32(word: *mut u32, by: u32) {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(word, by) };
    }
    #[inline(always)]
    pub(super) unsafe fn add64(word: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, by) };
    }
    #[inline(always)]
    pub(super) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(word, value) }
    }
    #[inline(always)]
    pub(super) unsafe fn cas(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as above.
        unsafe { atomic_cxchg::<u32, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(word, old, new).1 }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    };

    pub(super) unsafe fn or(word: *mut u32, bits: u32) -> u32 {
        // SAFETY: the caller's pointer is valid and aligned, here and below.
        unsafe { AtomicU32::from_ptr(word) }.fetch_or(bits, AcqRel)
    }
    pub(super) unsafe fn and(word: *mut u32, bits: u32) -> u32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.fetch_and(bits, AcqRel)
    }
    pub(super) unsafe fn fetch_add(word: *mut u32, by: u32) -> u32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.fetch_add(by, AcqRel)
    }
    pub(super) unsafe fn add32(word: *mut u32, by: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.fetch_add(by, Relaxed);
    }
    pub(super) unsafe fn add64(word: *mut u64, by: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(by, Relaxed);
    }
    pub(super) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.swap(value, AcqRel)
    }
    pub(super) unsafe fn cas(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.compare_exchange(old, new, AcqRel, Acquire).is_ok()
    }
}

/// Sets bits and returns the previous value.
#[inline(always)]
pub fn fetch_or(word: &mut u32, bits: u32) -> u32 {
    // SAFETY: a reference is valid and aligned.
    unsafe { imp::or(word, bits) }
}

/// Clears all other bits and returns the previous value.
#[inline(always)]
pub fn fetch_and(word: &mut u32, bits: u32) -> u32 {
    // SAFETY: as above.
    unsafe { imp::and(word, bits) }
}

/// Adds and returns the previous value.
#[inline(always)]
pub fn fetch_add(word: &mut u32, by: u32) -> u32 {
    // SAFETY: as above.
    unsafe { imp::fetch_add(word, by) }
}

/// Adds to a word of 64 bits.
#[inline(always)]
pub fn add64(word: &mut u64, by: u64) {
    // SAFETY: as above.
    unsafe { imp::add64(word, by) };
}

/// Adds to a word of 32 bits.
#[inline(always)]
pub fn add32(word: &mut u32, by: u32) {
    // SAFETY: as above.
    unsafe { imp::add32(word, by) };
}

/// Subtracts one.
#[inline(always)]
pub fn decrement(word: &mut u32) {
    add32(word, u32::MAX);
}

/// Replaces the value and returns the previous one.
#[inline(always)]
pub fn swap(word: &mut u64, value: u64) -> u64 {
    // SAFETY: as above.
    unsafe { imp::swap(word, value) }
}

/// Replaces the value if it is `old`; returns whether it was.
#[inline(always)]
pub fn compare_exchange(word: &mut u32, old: u32, new: u32) -> bool {
    // SAFETY: as above.
    unsafe { imp::cas(word, old, new) }
}

/// Reads a word that another CPU may be writing.
#[inline(always)]
pub fn load(word: &u32) -> u32 {
    // SAFETY: as above; volatile, since the BPF target cannot select an atomic load.
    unsafe { core::ptr::read_volatile(word) }
}

/// Writes a word that another CPU may be reading.
#[inline(always)]
pub fn store(word: &mut u32, value: u32) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(word, value) }
}
