//! Requests that are open, and how they are taken back.

use std::sync::{Mutex, PoisonError, Weak};

use crate::scheduler::Ticket;

/// What the ids of answers begin with, before the request's own.
const KINDS: [&str; 3] = ["chatcmpl-", "cmpl-", "resp_"];

/// What a request is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// By the daemon: no other request of this run has it.
    pub(super) id: String,
    /// By the client, as `X-Request-Id`.
    pub(super) given: Option<String>,
}

impl Name {
    fn is(&self, name: &str) -> bool {
        let id = KINDS.iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name);
        self.id == id || self.given.as_deref() == Some(name)
    }
}

/// The requests that wait or run.
#[derive(Default)]
pub(super) struct Open(Mutex<Vec<(Name, Weak<Ticket>)>>);

impl Open {
    /// Remembers a request for as long as somebody holds its ticket.
    pub(super) fn add(&self, name: Name, ticket: Weak<Ticket>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more than there are connections, and one.
        open.retain(|(_, ticket)| ticket.strong_count() > 0);
        open.push((name, ticket));
    }

    /// Takes back what is called `name`; how many requests that are.
    pub(super) fn cancel(&self, name: &str) -> usize {
        let named: Vec<_> = {
            let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter().filter(|(known, _)| known.is(name)).filter_map(|(_, ticket)| ticket.upgrade()).collect()
        };
        named.iter().for_each(|ticket| ticket.cancel());
        named.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_answers_and_the_clients() {
        let name = Name { id: "00c0ffee-7".into(), given: Some("trace/1".into()) };
        for good in ["00c0ffee-7", "chatcmpl-00c0ffee-7", "cmpl-00c0ffee-7", "resp_00c0ffee-7", "trace/1"] {
            assert!(name.is(good), "{good}");
        }
        for other in ["", "00c0ffee-70", "00c0ffee", "x-00c0ffee-7", "cmpl-trace/1"] {
            assert!(!name.is(other), "{other}");
        }
        assert_eq!(Open::default().cancel("00c0ffee-7"), 0);
    }
}
