//! What is refused for heat and for memory.

use super::request::{Code, Failure};
use crate::governor::{Admission, Handle};

/// Seconds after which another attempt makes sense: a board cools, and memory is given back, in about a minute.
const RETRY_S: u64 = 60;

/// Refuses every request while none is admitted.
pub(super) fn any(governor: &Handle) -> Result<(), Failure> {
    let (code, why) = match governor.decision().admission {
        Admission::Open | Admission::Positions(_) => return Ok(()),
        Admission::Overheated => (Code::Overheated, "the processor is too hot to take more requests"),
        Admission::LowMemory => (Code::LowMemory, "memory is about to run out; no more requests are taken"),
    };
    Err(Failure { retry_after_s: Some(RETRY_S), ..Failure::new(code, why) })
}

/// Tokens that prompt and answer may have together: the context, or less while memory is short. Refuses a prompt that
/// would fit the context and does not fit memory.
pub(super) fn positions(governor: &Handle, prompt: usize, context: usize) -> Result<usize, Failure> {
    let Admission::Positions(fit) = governor.decision().admission else { return Ok(context) };
    if prompt < fit || prompt >= context {
        return Ok(fit.min(context));
    }
    let why = format!(
        "the prompt has {prompt} tokens, and memory is short: {fit} fit with the answer now. Shorten the prompt or try \
         again later"
    );
    Err(Failure { retry_after_s: Some(RETRY_S), ..Failure::new(Code::LowMemory, why) })
}
