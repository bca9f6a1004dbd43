//! One thread owns the model; a bounded queue stands before it; one answer is made at a time.
//!
//! ```text
//!   transports ── submit(Request, wake) ──▶ queue ──▶ engine thread ── Backend::generate
//!        ▲                                                 │
//!        └──────────── Ticket::take() ◀── mailbox ◀────────┘
//! ```
//!
//! A job pairs a [`Request`] with a mailbox; the transport keeps the [`Ticket`], and dropping the ticket takes the
//! request back. The scheduler never learns who listens, and never waits for them.

mod admission;
pub mod backend;
mod counters;
mod lock;
mod mailbox;
mod queue;
mod request;
mod worker;

use crate::engine::template::STACK_BYTES;
use crate::governor::Handle;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backend::{Backend, ModelInfo};
use queue::Queue;

pub use counters::Counts;
pub use mailbox::{Update, Wake};
pub use queue::{Begin, Options, Ticket};
pub use request::{Answer, Code, Failure, Priority, Request, Timings};

/// Handle of the engine thread; clones share it.
#[derive(Clone)]
pub struct Scheduler {
    queue: Arc<Queue>,
    governor: Handle,
}

impl Scheduler {
    /// Starts the thread `engine`, which loads the model by `load` and then serves requests until it is drained.
    ///
    /// `ready` is called on that thread with the facts about the model or with the error of `load`; `exited` is called
    /// when the thread ends, for whatever reason. What `governor` does not admit is refused.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(
        options: Options,
        governor: Handle,
        load: impl FnOnce() -> Result<Box<dyn Backend>, String> + Send + 'static,
        ready: impl FnOnce(Result<ModelInfo, String>) + Send + 'static,
        exited: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<(Scheduler, JoinHandle<()>)> {
        let queue = Arc::new(Queue::new(options));
        let (shared, own) = (Arc::clone(&queue), governor.clone());
        // Templates are parsed and rendered on this thread.
        let thread = std::thread::Builder::new().name("engine".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            let _exited = OnDrop(Some(exited));
            match load() {
                Ok(mut backend) => {
                    ready(Ok(backend.info().clone()));
                    worker::run(&shared, &own, backend.as_mut());
                }
                Err(error) => ready(Err(error)),
            }
        })?;
        Ok((Scheduler { queue, governor }, thread))
    }

    /// Puts a request into the queue. `wake` is called whenever the ticket has something new.
    ///
    /// # Errors
    ///
    /// [`Code::Busy`] when the queue is full, [`Code::ShuttingDown`] after [`Scheduler::drain`], [`Code::Overheated`] or
    /// [`Code::LowMemory`] when the machine cannot bear more.
    pub fn submit(&self, request: Request, wake: Wake) -> Result<Ticket, Failure> {
        let admitted = admission::any(&self.governor).and_then(|()| Queue::submit(&self.queue, request, wake));
        admitted.inspect_err(|failure| self.queue.counters.failed(failure))
    }

    /// Whether [`Scheduler::submit`] would take this request now if `more` others were waiting, `own` of them of the same
    /// client.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::submit`].
    pub fn admits(&self, request: &Request, more: usize, own: usize) -> Result<(), Failure> {
        // Whoever shuts down says so, so that nobody is told to come back.
        self.queue.admits(request, more, own).and_then(|()| admission::any(&self.governor))
    }

    /// Puts a request into the queue that was admitted before, whether or not the queue is full. `begin` is called on the
    /// engine thread before the request runs.
    ///
    /// # Errors
    ///
    /// [`Code::ShuttingDown`] after [`Scheduler::drain`].
    pub fn submit_held(&self, request: Request, wake: Wake, begin: Begin) -> Result<Ticket, Failure> {
        Queue::submit_held(&self.queue, request, wake, begin)
    }

    /// Takes no more requests, fails those that wait, and lets the running one go on until `limit` has passed. The
    /// engine thread ends after it.
    pub fn drain(&self, limit: Duration) {
        self.queue.drain(Instant::now() + limit);
    }

    /// A number that grows while the engine makes progress or is idle; it stands still when the engine hangs.
    pub fn heartbeat(&self) -> u64 {
        self.queue.heartbeat()
    }

    /// Requests that wait, and whether one is running.
    pub fn load(&self) -> (usize, bool) {
        self.queue.load()
    }

    /// What the governor decided last, and why.
    pub fn governor(&self) -> &Handle {
        &self.governor
    }

    /// Counts a request that was refused before it was submitted.
    pub fn refused(&self, failure: &Failure) {
        self.queue.counters.failed(failure);
    }

    /// What became of the requests so far.
    pub fn counts(&self) -> Counts {
        self.queue.counters.counts()
    }

    /// Whether [`Scheduler::drain`] was called.
    pub fn draining(&self) -> bool {
        self.queue.draining()
    }
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}
