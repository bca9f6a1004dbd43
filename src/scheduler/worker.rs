//! The engine thread's loop: one job after the other, with its deadline, its cancellation and its timings.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::admission;
use super::backend::{Backend, Finish, GenerateError, Outcome, Sampling, Step};
use super::queue::{Job, Queue, cancelled, expired, shutting_down};
use super::request::{Answer, Code, Failure, Timings};
use crate::governor::Handle;

/// Serves the queue until it is drained.
pub(super) fn run(queue: &Queue, governor: &Handle, backend: &mut dyn Backend) {
    while let Some(mut job) = queue.next(&mut || backend.idle()) {
        if let Some(begin) = job.begin.take() {
            begin();
        }
        let started = Instant::now();
        let result = serve(queue, governor, backend, &job, started);
        // Before the answer: who sees it may submit again at once and must find the place free.
        queue.done();
        log(&job, started, &result);
        job.reply.end(result);
    }
}

fn serve(
    queue: &Queue,
    governor: &Handle,
    backend: &mut dyn Backend,
    job: &Job,
    started: Instant,
) -> Result<Answer, Failure> {
    let prompt = backend.encode(&job.request.input)?;
    let context = admission::positions(governor, prompt.len(), backend.info().context)?;
    let room = room(prompt.len(), context)?;
    let wanted = job.request.sampling.max_tokens.unwrap_or(usize::MAX);
    let max_tokens = wanted.min(queue.options.max_tokens).min(room);
    let sampling = Sampling { max_tokens: Some(max_tokens), ..job.request.sampling.clone() };
    let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    let (mut logprobs, mut pending) = (Vec::new(), Vec::new());
    let mut first_token = None;
    let mut cut = None;
    let outcome = backend.generate(&prompt, &sampling, &mut |step| {
        let now = Instant::now();
        if !matches!(step, Step::Begun | Step::Prefill { .. }) {
            first_token.get_or_insert(now);
        }
        match step {
            // Not before: what is wrong with the request is told as a refusal.
            Step::Begun => job.reply.tell(|update| {
                update.queued = None;
                update.started = Some(prompt.len());
            }),
            Step::Prefill { done, total } => job.reply.tell(|update| update.prefill = Some((done, total))),
            Step::Text(more) => {
                text.push_str(more);
                logprobs.extend_from_slice(&pending);
                job.reply.tell(|update| {
                    update.text.push_str(more);
                    update.logprobs.append(&mut pending);
                });
            }
            // They reach the reader with the text that they belong to.
            Step::Logprobs(more) => pending.extend_from_slice(more),
            Step::Thought(more) => {
                thought.push_str(more);
                job.reply.tell(|update| update.thought.push_str(more));
            }
            Step::Call(call) => {
                calls.push(call.clone());
                job.reply.tell(|update| update.calls.push(call.clone()));
            }
            Step::Tick => {}
        }
        let drained = queue.tend(now);
        cut = if job.reply.cancelled() {
            Some(cancelled())
        } else if job.request.deadline.is_some_and(|deadline| now >= deadline) {
            Some(expired())
        } else if drained {
            Some(shutting_down())
        } else {
            None
        };
        if cut.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let outcome = outcome.map_err(|error| match error {
        GenerateError::Input(error) => error.into(),
        GenerateError::Engine(error) => {
            warn!(id = job.request.id, error, "the engine failed");
            Failure::new(Code::Internal, "the engine failed; its log has the reason")
        }
    })?;
    // The last token may have come in the same step as the cut: a complete answer is kept.
    if outcome.finish == Finish::Cancelled {
        return Err(cut.unwrap_or_else(cancelled));
    }
    let timings = timings(job.submitted, started, first_token, &outcome);
    Ok(Answer {
        text,
        logprobs,
        thought,
        calls,
        finish: outcome.finish,
        prompt_tokens: outcome.prompt_tokens,
        cached_tokens: outcome.cached_tokens,
        broken_at: outcome.broken_at,
        completion_tokens: outcome.completion_tokens,
        thought_tokens: outcome.thought_tokens,
        seed: outcome.seed,
        timings,
    })
}

/// Tokens that the context has left for the answer: at least one.
fn room(prompt: usize, context: usize) -> Result<usize, Failure> {
    match context.checked_sub(prompt) {
        None | Some(0) => Err(Failure::new(
            Code::TooLarge,
            format!(
                "the prompt has {prompt} tokens, and with one for the answer the context must hold {}; it holds \
                 {context}. Shorten the prompt or raise `context` in the section [model]",
                prompt + 1
            ),
        )),
        Some(room) => Ok(room),
    }
}

fn timings(submitted: Instant, started: Instant, first_token: Option<Instant>, outcome: &Outcome) -> Timings {
    let now = Instant::now();
    let first_token = first_token.unwrap_or(now);
    let (prefill, decode) = (first_token - started, now - first_token);
    let rate = |tokens: usize, time: Duration| if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() };
    Timings {
        queue: started - submitted,
        prefill,
        decode,
        prefill_per_s: rate(outcome.prompt_tokens.saturating_sub(outcome.cached_tokens), prefill),
        decode_per_s: rate(outcome.completion_tokens.saturating_sub(1), decode),
    }
}

fn log(job: &Job, started: Instant, result: &Result<Answer, Failure>) {
    let id = job.request.id.as_str();
    if let Ok(Answer { broken_at: Some(at), .. }) = result {
        info!(
            id,
            at,
            "most of the prompt is as before, but it has to be read again from token `at` on: what changes from \
                       request to request, such as the time, belongs to the end of a prompt"
        );
    }
    match result {
        Ok(answer) => info!(
            id,
            prompt_tokens = answer.prompt_tokens,
            cached_tokens = answer.cached_tokens,
            completion_tokens = answer.completion_tokens,
            finish = ?answer.finish,
            queue_ms = answer.timings.queue.as_millis() as u64,
            prefill_ms = answer.timings.prefill.as_millis() as u64,
            tokens_per_s = (answer.timings.decode_per_s * 100.0).round() / 100.0,
            "answered"
        ),
        Err(failure) => {
            let ran_ms = started.elapsed().as_millis() as u64;
            info!(id, code = failure.code.name(), ran_ms, "no answer");
        }
    }
}
