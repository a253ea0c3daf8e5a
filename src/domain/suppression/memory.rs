//! Memory of the set's tables: few large regions, in huge pages where the system has them.
//!
//! A look-up reads one line of cache somewhere in gigabytes. In pages of 4 KiB the processor must first find out where each
//! of them lies, which takes longer than the line itself, and twice so on a virtual machine: with pages of 2 MiB look-ups in
//! 30 M entries took half the time. For memory of the whole process they cost more than they gain (what is free between
//! two pieces is resident too), so the tables lie together here, packed without gaps but for those that growth leaves.
//!
//! A free stretch is kept by its place, to be joined with its neighbours, and by its size: the smallest that is large enough
//! is taken, so that the largest, which nobody has touched yet, comes last. Tables that grow leave stretches that are too
//! small for any: the blocks behind them [slide](Block::slide) down. Regions are never given back; the pages of what is free
//! at their ends are, by [`trim`].
//!
//! Invariants: a block's stretch lies within one region and is in no other block and not free; free stretches do not touch.

use parking_lot::Mutex;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::alloc::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// Blocks begin at lines of cache.
const LINE: usize = 64;
/// Bytes of a huge page.
const PAGE: usize = 2 << 20;
/// Bytes of address space asked for at once. What was never touched takes no memory.
const REGION: usize = 64 << 20;

static MEMORY: Mutex<Memory> = Mutex::new(Memory::new());

/// Gives the pages of free stretches back to the system.
pub(super) fn trim() {
    MEMORY.lock().trim();
}

/// Has the system clear a page that will be taken soon. Its first touch may take 10 ms: not for those whom others wait for.
pub(super) fn touch_ahead() {
    MEMORY.lock().touch_ahead();
}

/// Free bytes that lie between blocks.
pub(super) fn gaps() -> usize {
    MEMORY.lock().gaps()
}

/// What a table consists of.
///
/// # Safety
/// All bytes zero must be a value, every value must do without being dropped, and none may need more than the alignment of
/// a line of cache.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: any byte is a value.
unsafe impl Plain for u8 {}

/// Values side by side that begin as zeroes: a boxed slice in the memory of this module.
pub(super) struct Block<T: Plain> {
    at: NonNull<T>,
    len: usize,
}

// SAFETY: a block owns its stretch alone, as a boxed slice does.
unsafe impl<T: Plain + Send> Send for Block<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for Block<T> {}

impl<T: Plain> Block<T> {
    /// So many zeroes.
    pub(super) fn zeroed(len: usize) -> Self {
        const { assert!(align_of::<T>() <= LINE) };
        if len == 0 {
            return Self { at: NonNull::dangling(), len };
        }
        let Ok(layout) = Layout::array::<T>(len) else { panic!("a table larger than the address space") };
        let at = MEMORY.lock().take(stretch_of(layout.size())).unwrap_or_else(|| std::alloc::handle_alloc_error(layout)).cast();
        // SAFETY: the stretch is at least as long as the layout, aligned to a line, and nobody else's.
        unsafe { ptr::write_bytes(at.as_ptr(), 0, len) };
        Self { at, len }
    }

    /// The same values.
    pub(super) fn copy_of(values: &[T]) -> Self {
        let mut block = Self::zeroed(values.len());
        block.copy_from_slice(values);
        block
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        stretch_of(size_of_val(&**self))
    }

    /// Where it lies, to be compared with where others do.
    pub(super) fn place(&self) -> usize {
        self.at.as_ptr().addr()
    }

    /// Moves to the beginning of the free stretch before it, if there is one. Where all blocks do, in the order of their
    /// places, no gaps are left.
    pub(super) fn slide(&mut self) {
        if self.len == 0 {
            return;
        }
        let mut memory = MEMORY.lock();
        if let Some(to) = memory.slide(self.place(), self.allocated_bytes()) {
            let to = to.cast::<T>();
            // SAFETY: what was free before this block and the block itself are one stretch, which is nobody else's while
            // the lock is held; source and destination may overlap.
            unsafe { ptr::copy(self.at.as_ptr(), to.as_ptr(), self.len) };
            self.at = to;
        }
    }
}

impl<T: Plain> Deref for Block<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie at `at`, all of them written, for as long as the block lives; an empty block's pointer
        // is aligned.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Block<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and the block is borrowed for nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Default for Block<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Plain> Clone for Block<T> {
    fn clone(&self) -> Self {
        Self::copy_of(self)
    }
}

impl<T: Plain> Drop for Block<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            MEMORY.lock().give(self.place(), self.allocated_bytes());
        }
    }
}

/// Bytes of the stretch that so many bytes lie in.
fn stretch_of(bytes: usize) -> usize {
    bytes.next_multiple_of(LINE)
}

/// Regions, and what is free of them, as addresses and bytes.
struct Memory {
    by_place: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
    /// Where regions end.
    ends: BTreeSet<usize>,
    /// Up to here the largest free stretch was touched ahead.
    touched: usize,
}

impl Memory {
    const fn new() -> Self {
        Self { by_place: BTreeMap::new(), by_size: BTreeSet::new(), ends: BTreeSet::new(), touched: 0 }
    }

    /// A stretch of so many bytes, whole lines of cache; `None` where the system has no more.
    fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let found = self.by_size.range((bytes, 0)..).next().copied();
        let (free, at) = match found {
            Some(found) => found,
            None => {
                self.map(bytes.max(REGION).next_multiple_of(PAGE))?;
                self.by_size.range((bytes, 0)..).next().copied()?
            }
        };
        self.forget(at, free);
        if free > bytes {
            self.keep(at + bytes, free - bytes);
        }
        NonNull::new(ptr::with_exposed_provenance_mut(at))
    }

    /// The free stretch that ends here, if one does.
    fn before(&self, at: usize) -> Option<(usize, usize)> {
        let (place, free) = self.by_place.range(..at).next_back()?;
        (place + free == at).then_some((*place, *free))
    }

    /// Changes a stretch that is taken and the free one before it for one another; where the taken one begins then.
    fn slide(&mut self, at: usize, bytes: usize) -> Option<NonNull<u8>> {
        let (to, free) = self.before(at)?;
        self.forget(to, free);
        self.give(to + bytes, free);
        NonNull::new(ptr::with_exposed_provenance_mut(to))
    }

    fn gaps(&self) -> usize {
        self.by_place.iter().filter(|(at, bytes)| !self.ends.contains(&(*at + *bytes))).map(|(_, bytes)| *bytes).sum()
    }

    /// A stretch is free again.
    fn give(&mut self, at: usize, bytes: usize) {
        let (mut from, mut to) = (at, at + bytes);
        if let Some((place, free)) = self.before(at) {
            self.forget(place, free);
            from = place;
        }
        if let Some(free) = self.by_place.get(&to).copied() {
            self.forget(to, free);
            to += free;
        }
        self.keep(from, to - from);
    }

    fn keep(&mut self, at: usize, bytes: usize) {
        self.by_place.insert(at, bytes);
        self.by_size.insert((bytes, at));
    }

    fn forget(&mut self, at: usize, bytes: usize) {
        self.by_place.remove(&at);
        self.by_size.remove(&(bytes, at));
    }

    /// Adds a region of whole pages.
    fn map(&mut self, bytes: usize) -> Option<()> {
        // A page more, so that it can begin where a page does: a mapping as such need not.
        let mapped = bytes + PAGE;
        // SAFETY: a new private mapping at a place that the system chooses touches nothing that exists.
        let at = unsafe { mm::mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
        let begins = at.expose_provenance().next_multiple_of(PAGE);
        // Where the system has no huge pages, small ones do.
        #[cfg(target_os = "linux")]
        // SAFETY: the advice changes no byte of a mapping that is ours.
        unsafe {
            mm::madvise(ptr::with_exposed_provenance_mut(begins), bytes, Advice::LinuxHugepage).unwrap_or_default();
        }
        self.ends.insert(begins + bytes);
        self.give(begins, bytes);
        Some(())
    }

    fn touch_ahead(&mut self) {
        if self.by_size.last().is_none_or(|(free, _)| *free < PAGE) && self.map(REGION).is_none() {
            return; // whoever needs it will say so
        }
        let Some((free, at)) = self.by_size.last().copied() else { return };
        if !(at..=at + free).contains(&self.touched) {
            self.touched = at;
        }
        if self.touched < at + PAGE {
            let next = (at + PAGE).next_multiple_of(PAGE).min(at + free);
            for place in (self.touched.next_multiple_of(PAGE)..next).step_by(PAGE) {
                // SAFETY: the stretch is free and mapped to be written.
                unsafe { ptr::with_exposed_provenance_mut::<u8>(place).write_volatile(0) };
            }
            self.touched = next;
        }
    }

    fn trim(&mut self) {
        self.touched = 0;
        for (at, bytes) in &self.by_place {
            let (from, to) = (at.next_multiple_of(PAGE), (at + bytes) / PAGE * PAGE);
            if from < to {
                // SAFETY: these pages are free: nobody's bytes, and whoever takes them next writes them first.
                unsafe { mm::madvise(ptr::with_exposed_provenance_mut(from), to - from, TRIM).unwrap_or_default() };
            }
        }
    }
}

/// The pages' contents are not needed any more.
#[cfg(target_os = "linux")]
const TRIM: Advice = Advice::LinuxDontNeed;
#[cfg(not(target_os = "linux"))]
const TRIM: Advice = Advice::DontNeed;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_zero_at_first_and_nobody_elses_for_as_long_as_they_live(
            steps in prop::collection::vec((0..6_usize, 1..4000_usize, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut blocks: Vec<(u8, Block<u8>)> = Vec::new();
            for (number, (which, len, slid, trimmed)) in (1..=255_u8).cycle().zip(steps) {
                if which < blocks.len() {
                    blocks.swap_remove(which);
                } else {
                    let mut block = Block::<u8>::zeroed(len);
                    prop_assert!(block.iter().all(|byte| *byte == 0));
                    prop_assert_eq!(block.as_ptr().addr() % LINE, 0);
                    block.fill(number);
                    blocks.push((number, block));
                }
                if slid {
                    blocks.iter_mut().for_each(|(_, block)| block.slide());
                }
                if trimmed {
                    trim();
                }
                prop_assert!(blocks.iter().all(|(number, block)| block.iter().all(|byte| byte == number)));
            }
        }

        #[test]
        fn what_was_given_back_is_one_stretch_again(
            sizes in prop::collection::vec(1..100_usize, 1..60),
            order in any::<u64>(),
        ) {
            let mut memory = Memory::new();
            memory.keep(1 << 30, 1 << 20);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for lines in sizes {
                let bytes = lines * LINE;
                let at = memory.take(bytes).expect("a mebibyte is enough").as_ptr().addr();
                prop_assert!(taken.iter().all(|(other, size)| at + bytes <= *other || other + size <= at));
                taken.push((at, bytes));
            }
            taken.sort_by_key(|(at, _)| (*at as u64).wrapping_mul(order | 1));
            let mut left = taken.split_off(taken.len() / 2);
            for (at, bytes) in taken {
                memory.give(at, bytes);
            }
            // Those that are left slide together.
            memory.ends.insert((1 << 30) + (1 << 20));
            left.sort_unstable();
            let mut reached = 1 << 30;
            for (at, bytes) in &mut left {
                *at = memory.slide(*at, *bytes).map_or(*at, |to| to.as_ptr().addr());
                prop_assert_eq!(*at, reached);
                reached += *bytes;
            }
            prop_assert_eq!(memory.gaps(), 0);
            for (at, bytes) in left {
                memory.give(at, bytes);
            }
            prop_assert_eq!(memory.by_place.into_iter().collect::<Vec<_>>(), [(1 << 30, 1 << 20)]);
            prop_assert_eq!(memory.by_size.into_iter().collect::<Vec<_>>(), [(1 << 20, 1 << 30)]);
        }
    }

    #[test]
    fn a_block_may_be_larger_than_a_region() {
        let block = Block::<u8>::zeroed(REGION + PAGE + 1);
        assert!([0, REGION, REGION + PAGE].into_iter().all(|at| block[at] == 0));
        assert_eq!(block.allocated_bytes(), REGION + PAGE + LINE);
    }
}
