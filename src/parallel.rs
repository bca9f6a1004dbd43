//! The thread pool: fixed threads that split output rows, never sums, so results do not depend on their number.
//!
//! A *region* is one call of [`Pool::run`]: the calling thread is worker 0, the threads `kern-1`, `kern-2`, … are the
//! others, and the call returns when all that took part are done. Decoding a token takes hundreds of regions of some ten
//! microseconds, so a worker spins for a while before it parks, and so does the caller at the end of a region.
//!
//! [`Pool::rows_into`], [`Pool::items_into`] and their like hand out disjoint parts of one output and are the safe way to write from
//! several workers; [`Scratch`] is memory that belongs to a worker.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of a spin loop before a thread parks: tens of microseconds, the gap between two regions of a layer. In the tests one, so that every
/// gap is one to park in.
const SPINS: u32 = if cfg!(test) { 1 } else { 4_000 };

/// What a worker is asked to do, and what it says to that. Only the caller writes `WORK` and `QUIT`, and takes a `WORK` back that
/// the worker has not answered with `BUSY`.
const IDLE: u32 = 0;
const PARKED: u32 = 1;
const WORK: u32 = 2;
const BUSY: u32 = 3;
const QUIT: u32 = 4;

/// The function of the region in progress. The lifetime is erased: it is valid while `Shared::running` is not zero.
type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    job: UnsafeCell<Option<Job>>,
    /// One state per worker; worker 0 has none and its entry stays `IDLE`.
    states: Box<[AtomicU32]>,
    /// Workers that have not finished the region, nor been let off it.
    running: AtomicUsize,
    caller: Mutex<Thread>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not Sync by itself. The caller writes it while `running` is 0, before the
// Release swap to `WORK`; a worker reads it after its Acquire exchange of `WORK` for `BUSY` and before it lowers `running`.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}

// SAFETY: as above; the pointee is Sync, so it may be called from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Shared {}

/// Fixed threads and the caller; see the module. Not `Sync`: one thread at a time starts regions.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    width: Cell<usize>,
}

impl Pool {
    /// A pool of `threads` workers, the calling thread included; at least one.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            states: (0..threads).map(|_| AtomicU32::new(IDLE)).collect(),
            running: AtomicUsize::new(0),
            caller: Mutex::new(thread::current()),
            panic: Mutex::new(None),
        });
        // Built up in place, so that the threads that did start are joined when a later one is refused.
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1), width: Cell::new(threads) };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("kern-{worker}"));
            pool.workers.push(thread.spawn(move || shared.work(worker))?);
        }
        Ok(pool)
    }

    /// Number of workers that exist, the caller included: one more than the largest worker number.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Number of workers that take part in a region.
    pub fn width(&self) -> usize {
        self.width.get()
    }

    /// Lets `width` workers (1 to [`Pool::threads`]) take part from the next region on; the others stay parked.
    pub fn set_width(&self, width: usize) {
        self.width.set(width.clamp(1, self.threads()));
    }

    /// Calls `f(worker)` once on every active worker and returns when all calls have.
    ///
    /// # Panics
    ///
    /// When a call of `f` panics, with its payload, after the others have returned.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        self.run_on(self.width(), false, f);
    }

    /// Splits `0..rows` into contiguous ranges that begin at multiples of `granule` and calls `f(worker, range)` for each. With
    /// fewer granules than workers some stay idle; one granule runs inline.
    ///
    /// A worker comes back for the next range until none is left. Ranges begin at half of an equal share and get smaller, so that
    /// a worker whose core does something else meanwhile holds little up (guided self-scheduling, Polychronopoulos and Kuck 1987);
    /// one that has not begun when all ranges are taken is not waited for.
    pub fn rows(&self, rows: usize, granule: usize, f: impl Fn(usize, Range<usize>) + Sync) {
        let granule = granule.max(1);
        let units = rows.div_ceil(granule);
        let shares = units.min(self.width());
        match shares {
            0 => return,
            1 => return f(0, 0..rows),
            _ => {}
        }
        let next = AtomicUsize::new(0);
        let take = |start: usize| (start < units).then(|| start + (units - start).div_ceil(2 * shares));
        self.run_on(shares, true, &|worker| {
            // Relaxed: what the ranges are about was there before the region, and is looked at after it.
            while let Ok(start) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                let end = take(start).unwrap_or(units);
                f(worker, start * granule..(end * granule).min(rows));
            }
        });
    }

    /// As [`Pool::rows`] over the columns of `out`, a `[tokens, n]` matrix: who computes the rows `r` of a projection writes
    /// `out[t][r]` for every token `t`.
    ///
    /// # Panics
    ///
    /// When `out` is not a whole number of rows of `n`.
    pub fn rows_into<T: Send>(
        &self,
        out: &mut [T],
        n: usize,
        granule: usize,
        f: impl Fn(usize, Range<usize>, &mut RowsOut<'_, T>) + Sync,
    ) {
        self.rows_into_each([(out, n)], granule, |worker, _, rows, out| f(worker, rows, out));
    }

    /// As [`Pool::rows_into`] over the columns of several matrices `(out, n)` in one region: `f(worker, number, rows, out)`, where
    /// `number` says of which of them the rows are.
    ///
    /// # Panics
    ///
    /// When one of them is not a whole number of rows of its `n`.
    pub fn rows_into_each<T: Send, const N: usize>(
        &self,
        outs: [(&mut [T], usize); N],
        granule: usize,
        f: impl Fn(usize, usize, Range<usize>, &mut RowsOut<'_, T>) + Sync,
    ) {
        let granule = granule.max(1);
        let mut units = 0;
        let outs = outs.map(|(out, n)| {
            assert!(out.is_empty() || n > 0 && out.len().is_multiple_of(n), "{} values in rows of {n}", out.len());
            let (first, tokens) = (units, out.len().checked_div(n).unwrap_or(0));
            units += if tokens == 0 { 0 } else { n.div_ceil(granule) };
            (Disjoint::new(out), n, tokens, first..units)
        });
        self.rows(units, 1, |worker, range| {
            for (number, (whole, n, tokens, units)) in outs.iter().enumerate() {
                let (start, end) = (range.start.max(units.start), range.end.min(units.end));
                if start < end {
                    let rows = (start - units.start) * granule..((end - units.start) * granule).min(*n);
                    f(worker, number, rows.clone(), &mut RowsOut { whole, n: *n, tokens: *tokens, rows });
                }
            }
        });
    }

    /// Calls `f(worker, index, item)` for every item of `item_len` values of `out`.
    ///
    /// # Panics
    ///
    /// When `out` is not a whole number of items.
    pub fn items_into<T: Send>(&self, out: &mut [T], item_len: usize, f: impl Fn(usize, usize, &mut [T]) + Sync) {
        if out.is_empty() {
            return;
        }
        assert!(item_len > 0 && out.len().is_multiple_of(item_len), "{} values in items of {item_len}", out.len());
        let items = out.len() / item_len;
        let whole = Disjoint::new(out);
        self.rows(items, 1, |worker, items| {
            for index in items {
                // SAFETY: `rows` hands out every index once, and the slice of the turn before is gone.
                #[allow(unsafe_code)]
                let item = unsafe { whole.slice(index * item_len..(index + 1) * item_len) };
                f(worker, index, item);
            }
        });
    }

    /// As [`Pool::items_into`], with the items of a range at once: `f(worker, items, values)`. Ranges begin at multiples of
    /// `granule`.
    ///
    /// # Panics
    ///
    /// When `out` is not a whole number of items.
    pub fn ranges_into<T: Send>(
        &self,
        out: &mut [T],
        item_len: usize,
        granule: usize,
        f: impl Fn(usize, Range<usize>, &mut [T]) + Sync,
    ) {
        if out.is_empty() {
            return;
        }
        assert!(item_len > 0 && out.len().is_multiple_of(item_len), "{} values in items of {item_len}", out.len());
        let items = out.len() / item_len;
        let whole = Disjoint::new(out);
        self.rows(items, granule, |worker, items| {
            // SAFETY: `rows` hands out every index once.
            #[allow(unsafe_code)]
            let values = unsafe { whole.slice(items.start * item_len..items.end * item_len) };
            f(worker, items, values);
        });
    }

    /// Calls `f` on the caller and on `width - 1` workers; if `let_off`, not on those that have not begun when the caller's call
    /// returns.
    fn run_on(&self, width: usize, let_off: bool, f: &(dyn Fn(usize) + Sync)) {
        if width == 1 {
            return f(0);
        }
        let shared = &*self.shared;
        let job: *const (dyn Fn(usize) + Sync + '_) = f;
        // SAFETY: only the lifetime changes. This function does not return or unwind before `running` is 0 again; no worker
        // touches the job after it has lowered `running`, and one that is let off never does: its exchange fails.
        #[allow(unsafe_code)]
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        // SAFETY: no region is in progress (`Pool` is not Sync, and `f` cannot hold it), so no worker reads the cell.
        #[allow(unsafe_code)]
        unsafe {
            *shared.job.get() = Some(job);
        }
        *lock(&shared.caller) = thread::current();
        shared.running.store(width - 1, Ordering::Relaxed);
        for (state, worker) in shared.states[1..width].iter().zip(&self.workers) {
            if state.swap(WORK, Ordering::Release) == PARKED {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        if let_off {
            let late =
                |state: &&AtomicU32| state.compare_exchange(WORK, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            let late = shared.states[1..width].iter().filter(late).count();
            shared.running.fetch_sub(late, Ordering::Relaxed);
        }
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
            wait(&mut spins);
        }
        let theirs = lock(&shared.panic).take();
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (state, worker) in self.shared.states[1..].iter().zip(&self.workers) {
            state.store(QUIT, Ordering::Release);
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs and has nothing to say here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of a worker thread.
    fn work(&self, worker: usize) {
        let state = &self.states[worker];
        loop {
            let mut spins = 0;
            loop {
                match state.load(Ordering::Acquire) {
                    // The caller may take it back just now.
                    WORK if state.compare_exchange(WORK, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() => break,
                    QUIT => return,
                    _ => {}
                }
                if spins == SPINS && !may_park(state) {
                    continue;
                }
                wait(&mut spins);
            }
            // SAFETY: `WORK` was stored after the job, and with `BUSY` the job lives until `running` is lowered below.
            #[allow(unsafe_code)]
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*self.job.get()).map(|job| (*job)(worker)) }));
            if let Err(payload) = outcome {
                *lock(&self.panic) = Some(payload);
            }
            // Before `running`: as soon as that is 0 the caller may ask for the next region.
            state.store(IDLE, Ordering::Relaxed);
            if self.running.fetch_sub(1, Ordering::Release) == 1 {
                lock(&self.caller).unpark();
            }
        }
    }
}

/// Says that a worker parks, so that the caller knows that it must unpark. Not where there was work a moment ago, even if it has been
/// taken back since: the caller did not see `PARKED` then, and nobody would unpark.
fn may_park(state: &AtomicU32) -> bool {
    matches!(state.compare_exchange(IDLE, PARKED, Ordering::Relaxed, Ordering::Relaxed), Ok(_) | Err(PARKED))
}

/// One turn of waiting: spin [`SPINS`] times, then park; who is woken, spins again.
fn wait(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        thread::park();
        *spins = 0;
    }
}

/// No invariant spans these locks, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `&mut [T]` that several workers take disjoint parts of.
struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out slices that `slice`'s caller promises to be disjoint, as `chunks_mut` over threads would.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    fn new(whole: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: whole.as_mut_ptr(), len: whole.len(), owner: PhantomData }
    }

    /// # Safety
    ///
    /// While the result lives, nobody else holds a slice that overlaps `range`.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice that `new` borrowed, as just checked; alone there, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// The part of a `[tokens, n]` output that one call writes: some columns, in every row.
pub struct RowsOut<'a, T> {
    whole: &'a Disjoint<'a, T>,
    n: usize,
    tokens: usize,
    rows: Range<usize>,
}

impl<T> RowsOut<'_, T> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `out[t][rows]`.
    ///
    /// # Panics
    ///
    /// When there is no token `t`.
    pub fn row(&mut self, t: usize) -> &mut [T] {
        assert!(t < self.tokens, "token {t} of {}", self.tokens);
        let start = t * self.n;
        // SAFETY: `rows` lies in `0..n` and belongs to this call alone in every token's row; `&mut self` keeps it from
        // holding two of them.
        #[allow(unsafe_code)]
        unsafe {
            self.whole.slice(start + self.rows.start..start + self.rows.end)
        }
    }
}

/// One `T` per worker, for what a kernel call needs besides its output.
///
/// The lock is never contended, it only proves that no two workers share a value: tens of nanoseconds per region.
pub struct Scratch<T>(Box<[Mutex<T>]>);

impl<T> Scratch<T> {
    /// A value for each worker of `pool`.
    pub fn new(pool: &Pool, mut value: impl FnMut() -> T) -> Scratch<T> {
        Scratch((0..pool.threads()).map(|_| Mutex::new(value())).collect())
    }

    /// The value of `worker`.
    ///
    /// # Panics
    ///
    /// When somebody holds it already (it would be another worker's), or there is no such worker.
    pub fn of(&self, worker: usize) -> MutexGuard<'_, T> {
        match self.0[worker].try_lock() {
            Ok(value) => value,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => panic!("the scratch of worker {worker} is in use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// The workers that a region ran on, with the names of their threads.
    fn seen(pool: &Pool) -> BTreeSet<(usize, String)> {
        let seen = Mutex::new(BTreeSet::new());
        pool.run(&|worker| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            assert!(lock(&seen).insert((worker, name)), "worker {worker} ran twice");
        });
        seen.into_inner().unwrap()
    }

    fn names(workers: Range<usize>) -> BTreeSet<(usize, String)> {
        let own = thread::current().name().unwrap_or_default().to_owned();
        workers.map(|w| (w, if w == 0 { own.clone() } else { format!("kern-{w}") })).collect()
    }

    #[test]
    fn every_active_worker_runs_once_at_every_width() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            assert_eq!(seen(&pool), names(0..threads));
            for width in (1..=threads).chain((1..=threads).rev()) {
                pool.set_width(width);
                assert_eq!(seen(&pool), names(0..width));
            }
            pool.set_width(0);
            assert_eq!(pool.width(), 1);
            pool.set_width(99);
            assert_eq!(seen(&pool), names(0..threads));
        }
        assert_eq!(Pool::new(0).unwrap().threads(), 1);
    }

    /// Back to back, and with pauses long enough for everybody to park in between; regions in which workers are let off, and such
    /// that need them all, which would not end without one.
    #[test]
    fn no_region_is_lost_or_ends_early() {
        let pool = Pool::new(3).unwrap();
        let mut counts = [0_u32; 3];
        let calls = [const { AtomicUsize::new(0) }; 3];
        for turn in 0..20_000 {
            if turn % 5_000 == 0 {
                thread::sleep(Duration::from_millis(20));
            }
            for _ in 0..turn % 7 {
                pool.items_into(&mut counts, 1, |_, _, count| count[0] += 1);
            }
            let before = calls.each_ref().map(|calls| calls.load(Ordering::Relaxed));
            pool.run(&|worker| {
                if turn % 2_000 == 0 {
                    // The caller has to wait for this one, parked.
                    thread::sleep(Duration::from_millis(worker as u64));
                }
                calls[worker].fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.each_ref().map(|calls| calls.load(Ordering::Relaxed)), before.map(|calls| calls + 1));
        }
        let regions: u32 = (0..20_000).map(|turn| turn % 7).sum();
        assert_eq!(counts, [regions; 3]);
    }

    /// The caller may have taken work back that kept a worker from saying so.
    #[test]
    fn nobody_parks_unannounced() {
        for (before, parks, after) in
            [(IDLE, true, PARKED), (PARKED, true, PARKED), (WORK, false, WORK), (QUIT, false, QUIT)]
        {
            let state = AtomicU32::new(before);
            assert_eq!((may_park(&state), state.into_inner()), (parks, after), "{before}");
        }
    }

    #[test]
    fn rows_are_covered_once_at_granules() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for (rows, granule) in [(0, 8), (1, 8), (8, 8), (9, 8), (100, 8), (64, 1), (3, 1), (5, 0), (7, 100)] {
                let ranges = Mutex::new(Vec::new());
                pool.rows(rows, granule, |worker, rows| lock(&ranges).push((rows.start, rows.end, worker)));
                let mut ranges = ranges.into_inner().unwrap();
                ranges.sort_unstable();
                let mut next = 0;
                for (start, end, worker) in ranges {
                    assert!(start == next && start < end && worker < threads, "{rows} rows by {granule}");
                    assert!(start.is_multiple_of(granule.max(1)));
                    next = end;
                }
                assert_eq!(next, rows, "{rows} rows by {granule}");
            }
        }
    }

    /// A worker that is held up keeps no more than the range that it has.
    #[test]
    fn the_others_take_what_a_slow_worker_does_not() {
        let pool = Pool::new(2).unwrap();
        let done = [const { AtomicUsize::new(0) }; 2];
        let rows_of = |worker: usize| done[worker].load(Ordering::Relaxed);
        pool.rows(64, 1, |worker, rows| {
            done[worker].fetch_add(rows.len(), Ordering::Relaxed);
            // The caller until the other one has begun, that one until all rows have been handed out.
            while if worker == 0 { rows_of(1) == 0 } else { rows_of(0) + rows_of(1) < 64 } {
                thread::yield_now();
            }
        });
        let (caller, slow) = (rows_of(0), rows_of(1));
        assert!(caller + slow == 64 && (1..=16).contains(&slow), "{caller} and {slow}");
    }

    /// Every value of three matrices is written once, by rows that begin at multiples of four, wherever a range goes from one matrix over
    /// to the next.
    #[test]
    fn rows_of_several_outputs_are_handed_out_once() {
        const TOKENS: usize = 3;
        let widths = [33, 7, 4, 18];
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            // One of them has no rows, as of no tokens.
            let mut outs = widths.map(|n| vec![0u32; if n == 7 { 0 } else { TOKENS * n }]);
            let mut n = widths.iter().copied();
            let each = outs.each_mut().map(|out| (out.as_mut_slice(), n.next().unwrap()));
            pool.rows_into_each(each, 4, |_, number, rows, out| {
                assert!(rows.start.is_multiple_of(4) && out.tokens() == TOKENS);
                assert!(rows.end.is_multiple_of(4) || rows.end == widths[number], "{rows:?} of {number}");
                for t in 0..TOKENS {
                    out.row(t).iter_mut().zip(rows.clone()).for_each(|(x, row)| *x += (100 * number + row) as u32 + 1);
                }
            });
            for (number, (out, n)) in outs.iter().zip(widths).enumerate() {
                let want = (0..out.len()).map(|i| (100 * number + i % n) as u32 + 1);
                assert!(out.iter().copied().eq(want), "output {number}, {threads} threads");
            }
            let [a, b, ..] = &mut outs;
            pool.rows_into_each([(&mut a[..0], 0), (&mut b[..0], 7)], 4, |_, _, _, _| panic!("there is no row"));
        }
    }

    #[test]
    fn columns_and_items_arrive_where_they_belong() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let scratch = Scratch::new(&pool, || vec![0; 16]);
            let (tokens, n) = (3, 21);
            let mut out = vec![0; tokens * n];
            pool.rows_into(&mut out, n, 4, |worker, rows, out| {
                let mut scratch = scratch.of(worker);
                scratch.resize(rows.len(), 0);
                for t in 0..out.tokens() {
                    for (value, r) in scratch.iter_mut().zip(rows.clone()) {
                        *value = 100 * t + r;
                    }
                    out.row(t).copy_from_slice(&scratch);
                }
            });
            let want: Vec<usize> = (0..tokens * n).map(|i| 100 * (i / n) + i % n).collect();
            assert_eq!(out, want);

            pool.items_into(&mut out, n, |_, index, item| item.fill(index));
            assert_eq!(out, (0..tokens * n).map(|i| i / n).collect::<Vec<_>>());
            out.fill(0);
            pool.ranges_into(&mut out, 7, 2, |_, items, values| {
                assert!(items.start % 2 == 0 && values.len() == 7 * items.len());
                values.iter_mut().enumerate().for_each(|(i, value)| *value = items.start + i / 7);
            });
            assert_eq!(out, (0..tokens * n).map(|i| i / 7).collect::<Vec<_>>());
            pool.ranges_into(&mut out[..0], 7, 1, |_, _, _| panic!("there is no item"));
            pool.items_into(&mut out[..0], n, |_, _, _| panic!("there is no item"));
            pool.rows_into(&mut out[..0], 0, 1, |_, _, _| panic!("there is no row"));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for culprit in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| assert_ne!(worker, culprit, "on purpose"));
            }));
            assert!(caught.is_err(), "worker {culprit}");
            assert_eq!(seen(&pool), names(0..3));
        }
        let scratch = Scratch::new(&pool, || 0);
        let held = scratch.of(1);
        assert!(catch_unwind(AssertUnwindSafe(|| *scratch.of(1))).is_err());
        drop(held);
        assert_eq!(*scratch.of(1), 0);
    }
}
