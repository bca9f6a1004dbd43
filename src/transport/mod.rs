//! The doors: bytes to [`Request`](crate::scheduler::Request) and back. Nothing of models is known here.
//!
//! ```text
//! socket   HTTP/1.1 over a Unix socket     openai   its JSON, pure
//! mqtt     MQTT 5 through rumqttc          wire     its payloads and topics, pure
//! fields   JSON fields with their ranges, shared by both
//! ```

pub mod fields;
pub mod mqtt;
pub mod openai;
pub mod socket;
pub mod wire;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

use crate::scheduler::{Failure, Request, Scheduler, Ticket, Update};

/// A ticket that can be awaited.
struct Waiting {
    ticket: Ticket,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Waiting {
    fn submit(scheduler: &Scheduler, request: Request) -> Result<Waiting, Failure> {
        let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let slot = Arc::clone(&waker);
        let wake = Box::new(move || {
            let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        Ok(Waiting { ticket: scheduler.submit(request, wake)?, waker })
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Update> {
        // The waker goes in before the look: a change between the two wakes a task that already has it.
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        let update = self.ticket.take();
        if update.is_empty() { Poll::Pending } else { Poll::Ready(update) }
    }

    async fn next(&self) -> Update {
        poll_fn(|context| self.poll(context)).await
    }
}

/// Waits until `stop` is true, or nobody is left who could make it so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|&stopped| stopped).await;
}
