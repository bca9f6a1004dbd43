//! Waiting for answers, and for the end.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

use crate::scheduler::{Failure, Request, Scheduler, Ticket, Update};

/// A ticket that can be awaited.
pub(super) struct Waiting {
    ticket: Arc<Ticket>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Waiting {
    /// Puts a request into the queue.
    pub(super) fn submit(scheduler: &Scheduler, request: Request) -> Result<Waiting, Failure> {
        let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let slot = Arc::clone(&waker);
        let wake = Box::new(move || {
            let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        Ok(Waiting { ticket: Arc::new(scheduler.submit(request, wake)?), waker })
    }

    /// For who takes the request back without waiting for its answer.
    pub(super) fn ticket(&self) -> Weak<Ticket> {
        Arc::downgrade(&self.ticket)
    }

    /// What is new; else the context's task is woken when something is.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<Update> {
        // The waker goes in before the look: a change between the two wakes a task that already has it.
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        let update = self.ticket.take();
        if update.is_empty() { Poll::Pending } else { Poll::Ready(update) }
    }

    /// What is new, once something is.
    pub(super) async fn next(&self) -> Update {
        poll_fn(|context| self.poll(context)).await
    }
}

/// Waits until `stop` is true, or nobody is left who could make it so.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stopped| stopped).await;
}
