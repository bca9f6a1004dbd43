//! A prompt in, an answer out: prefill, then sample and step until the model ends its turn.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::checkpoint::GenerationDefaults;
use crate::engine::checkpoint::source::Source;
use crate::engine::grammar::{Constraint, Format, GrammarError, Grammars};
use crate::engine::kv_cache::REACH;
use crate::engine::logprobs::{Logprob, Scores};
use crate::engine::pack::{self, PackError};
use crate::engine::pinned::{self, Pinned};
use crate::engine::prefix::{self, Prefixes};
use crate::engine::runner::{LoadError, Options, RunError, Runner};
use crate::engine::sampler::{Sampler, SamplingParams};
use crate::engine::stream::{Delta, StopError, TextStream};
use crate::engine::template::{ChatRequest, ChatTemplate, TemplateError};
use crate::engine::tokenizer::Tokenizer;

/// Why a model directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Weights, kernels or threads.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What is not weights: the tokenizer, the chat template.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The tokenizer belongs to another model.
    #[error("{}: expected at most {vocab} tokens, as config.json has, found {found}", path.display())]
    Vocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Tokens of the model.
        vocab: usize,
        /// Tokens of the tokenizer.
        found: usize,
    },
    /// An answer would never end.
    #[error("{}: no eos_token_id in generation_config.json or config.json: an answer would never end", dir.display())]
    NoEnd {
        /// The checkpoint.
        dir: PathBuf,
    },
}

/// Why an answer could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The prompt cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The stop texts cannot be used.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The wanted form cannot be had.
    #[error("{0}")]
    Format(#[from] GrammarError),
}

/// What an answer shall be like, apart from how its tokens are drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Texts that end it.
    pub stops: &'a [String],
    /// Its form.
    pub format: Option<&'a Format>,
    /// Whether calls of tools are read out of it.
    pub calls: bool,
    /// Whether it is told how likely the tokens of its text were, and with how many alternatives.
    pub logprobs: Option<usize>,
    /// Most tokens that it has.
    pub max_tokens: usize,
}

/// Progress of [`Engine::generate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// So many of the prompt's tokens are known from earlier requests. Comes once, before all else.
    Cached(usize),
    /// So many of the prompt's tokens have been computed, those that were known included.
    Prefill(usize),
    /// More of the answer, or of what the model thinks before it.
    Delta(&'a Delta),
    /// How likely the tokens of the text were that comes next.
    Logprobs(&'a [Logprob]),
    /// A token was chosen; its text, if it gave any, came before. So many tokens went through the layers for it: one, or the
    /// prompt, or one with those that the form of the answer forced after it.
    Token(usize),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// The callback said `Break`.
    Cancelled,
}

/// What [`Engine::generate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that did not have to be computed.
    pub cached_tokens: usize,
    /// Where the prompt leaves the one before, when most of it is the same text nevertheless.
    pub broken_at: Option<usize>,
    /// Tokens sampled, the one that ended the turn included.
    pub completion_tokens: usize,
    /// Those of them that belong to thoughts.
    pub thought_tokens: usize,
    /// The seed in use.
    pub seed: u64,
}

/// A checkpoint with everything that turns conversations into answers.
pub struct Engine {
    runner: Runner,
    prefixes: Prefixes,
    pinned: Option<Pinned>,
    /// What it was loaded from.
    source: Source,
    tokenizer: Arc<Tokenizer>,
    /// Made by the first request that wants a form.
    grammars: Option<Grammars>,
    template: ChatTemplate,
    defaults: GenerationDefaults,
}

impl Engine {
    /// Opens the model at `path`, a Hugging Face directory or a packed file.
    pub fn load(path: &Path, options: &Options) -> Result<Engine, EngineError> {
        let source = Source::open(path).map_err(LoadError::from)?;
        let tokenizer = pack::tokenizer(&source)?;
        let template = pack::chat_template(&source)?;
        let runner = Runner::of(&source, options)?;
        let (vocab, found) = (runner.config().vocab_size, tokenizer.vocab_size());
        if found > vocab {
            return Err(EngineError::Vocabulary { path: source.place("tokenizer.json"), vocab, found });
        }
        let defaults = runner.generation().clone();
        if defaults.eos.is_empty() {
            return Err(EngineError::NoEnd { dir: path.to_path_buf() });
        }
        let (tokenizer, prefixes) = (Arc::new(tokenizer), Prefixes::default());
        Ok(Engine { runner, prefixes, pinned: None, source, tokenizer, grammars: None, template, defaults })
    }

    /// What runs the model.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// As [`Engine::runner`], to run tokens by hand.
    pub fn runner_mut(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Keeps at most `bytes` of the beginnings of earlier prompts from now on, besides the latest request's own: none at first.
    pub fn limit_prefixes(&mut self, bytes: usize) {
        self.prefixes.limit(bytes);
    }

    /// Bytes of memory that keys and values take, those of the latest request and those that are kept of earlier ones.
    pub fn cache_bytes(&self) -> usize {
        self.runner.kv_bytes() + self.prefixes.bytes()
    }

    /// Keeps these beginnings of prompts in files of the directory `dir`, of at most `bytes` together; those that are there already
    /// are of use at once, the others once [`Engine::prepare`] has computed them. Files of others are removed.
    ///
    /// # Errors
    ///
    /// The model's files cannot be read to tell it from others.
    pub fn pin(&mut self, dir: &Path, bytes: u64, pins: Vec<(String, Vec<u32>)>) -> Result<(), EngineError> {
        let identity = pinned::identity(&self.source).map_err(LoadError::from)?;
        let mut pinned = Pinned::new(dir, identity, self.runner.kv(), bytes);
        pins.into_iter().for_each(|(name, tokens)| pinned.add(&name, tokens));
        pinned.tidy();
        self.pinned = Some(pinned);
        Ok(())
    }

    /// Bytes of memory that the next pinned beginning takes while it is computed; `None` when all are there.
    pub fn unprepared(&self) -> Option<usize> {
        let tokens = self.pinned.as_ref()?.missing()?;
        Some(self.runner.empty_cache().stored_bytes(tokens.len()))
    }

    /// Runs one batch of a pinned beginning that is not there yet, and writes it once it is complete. Returns how many tokens ran.
    pub fn prepare(&mut self) -> usize {
        let Some(tokens) = self.pinned.as_ref().and_then(Pinned::missing) else { return 0 };
        // The last token of a prompt is never known, and here all are wanted.
        let prompt: Vec<u32> = tokens.iter().copied().chain([0]).collect();
        let all = &prompt[..tokens.len()];
        if self.runner.accepts(&prompt).is_err() {
            self.pinned = None;
            return 0;
        }
        let known = self.prefixes.begin(self.runner.state_mut(), &prompt).cached;
        let done = if known < all.len() { self.runner.batch(all, known) } else { known };
        if done == all.len() {
            self.prefixes.keep(self.runner.state(), true);
            if let Some(pinned) = &mut self.pinned {
                pinned.store(self.runner.state());
            }
        }
        done - known
    }

    /// The tokens with which every conversation begins that has the instructions and tools of `request`, which has no other messages.
    ///
    /// # Errors
    ///
    /// The template refuses it.
    pub fn beginning(&self, request: &ChatRequest) -> Result<Vec<u32>, TemplateError> {
        let with = |text: &str| {
            let mut request = request.clone();
            request.messages.push(serde_json::json!({"role": "user", "content": text}));
            self.encode_chat(&request)
        };
        let (mut one, other) = (with("a")?, with("1")?);
        one.truncate(prefix::common(&one, &other));
        // What follows a control token is another word, whatever it begins with.
        let end = one.iter().rposition(|token| self.tokenizer.is_control(*token)).map_or(0, |at| at + 1);
        one.truncate(end);
        Ok(one)
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// How the checkpoint wants its tokens drawn.
    pub fn default_sampling(&self) -> SamplingParams {
        let d = &self.defaults;
        SamplingParams {
            temperature: if d.do_sample { d.temperature } else { 0.0 },
            top_k: u32::try_from(d.top_k).unwrap_or(0),
            top_p: d.top_p,
            min_p: d.min_p,
            repetition_penalty: d.repetition_penalty,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }

    /// Token ids of a conversation, ready for the model's answer. Nothing in it can become a control token.
    pub fn encode_chat(&self, request: &ChatRequest) -> Result<Vec<u32>, TemplateError> {
        self.template.prompt(request, &self.tokenizer)
    }

    /// Token ids of a text that the model continues: `<bos>` and the text.
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        self.runner.config().bos.into_iter().chain(self.tokenizer.encode_text(text)).collect()
    }

    /// Answers `prompt` as it is `wanted`; `on` hears of every batch of the prompt and every token. What an earlier prompt
    /// began with as well is not computed again, which changes nothing of the answer.
    ///
    /// # Errors
    ///
    /// The prompt cannot be run, the stop texts or the form cannot be used.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: SamplingParams,
        wanted: Wanted<'_>,
        on: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, GenerateError> {
        let max_tokens = wanted.max_tokens;
        let mut stream = TextStream::new(&self.tokenizer, wanted.stops.to_vec())?;
        if wanted.calls {
            stream = stream.with_calls(&self.tokenizer);
        }
        let mut constraint = wanted.format.map(|format| self.constraint(format)).transpose()?;
        let mut sampler = Sampler::new(sampling, prompt);
        self.runner.accepts(prompt)?;
        self.fetch(prompt);
        let start = self.prefixes.begin(self.runner.state_mut(), prompt);
        let mut outcome = Outcome {
            finish: Finish::Cancelled,
            cached_tokens: start.cached,
            broken_at: start.broken_at,
            completion_tokens: 0,
            thought_tokens: 0,
            seed: sampler.seed(),
        };
        let mut likely = wanted.logprobs.map(Likely::new);
        // What the form forces and is still to come: with probabilities each token is a step of its own.
        let mut forced = VecDeque::new();
        let mut ran = prompt.len();
        let read =
            on(Progress::Cached(start.cached)).is_continue() && self.read(prompt, start.cached, start.branch, on);
        let mut logits = read.then(|| self.runner.scores());
        'answer: while let Some(scores) = logits {
            if outcome.completion_tokens == max_tokens {
                outcome.finish = Finish::Length;
                break;
            }
            if let Some(likely) = &mut likely {
                likely.scores.keep(scores);
            }
            let mut tokens = Vec::new();
            if let Some(token) = forced.pop_front() {
                tokens.push(token);
            } else {
                if let Some(constraint) = &mut constraint {
                    constraint.apply(scores)?;
                }
                tokens.push(sampler.next(scores));
                if let (Some(constraint), false) = (&mut constraint, self.defaults.eos.contains(&tokens[0])) {
                    let next = constraint.accept(tokens[0])?;
                    next.iter().for_each(|token| sampler.saw(*token));
                    if likely.is_some() { forced.extend(next) } else { tokens.extend(next) }
                }
            }
            for (nth, token) in tokens.iter().enumerate() {
                outcome.completion_tokens += 1;
                if self.defaults.eos.contains(token) {
                    outcome.finish = Finish::Stop;
                    break 'answer;
                }
                let before = (stream.in_text(), stream.in_thought());
                let deltas = stream.push(&self.tokenizer, *token);
                outcome.thought_tokens += usize::from(before.1 || stream.in_thought());
                if let Some(likely) = likely.as_mut().filter(|_| before.0 && stream.in_text())
                    && !self.tokenizer.is_control(*token)
                {
                    likely.add(*token);
                }
                let told = tell(&deltas, likely.as_mut(), on);
                if told.is_break() || (nth == 0 && on(Progress::Token(ran)).is_break()) {
                    return Ok(outcome);
                }
                if stream.stopped() {
                    outcome.finish = Finish::Stop;
                    break 'answer;
                }
                let last = nth + 1 == tokens.len() && forced.is_empty();
                let complete = last && constraint.as_ref().is_some_and(Constraint::ended);
                if complete {
                    outcome.finish = Finish::Stop;
                    break 'answer;
                }
                if outcome.completion_tokens == max_tokens || self.runner.position() + nth == self.runner.context() {
                    outcome.finish = Finish::Length;
                    break 'answer;
                }
            }
            ran = tokens.len();
            // The next prompt of this conversation may have the answer in other words, and the same prompt may come again.
            let end = prompt.len() - 1 + REACH;
            if (self.runner.position()..self.runner.position() + ran).contains(&end) {
                self.prefixes.keep(self.runner.state(), false);
            }
            let (runner, constraint) = (&mut self.runner, &mut constraint);
            logits = std::thread::scope(move |scope| {
                if let Some(constraint) = constraint {
                    // Where there is no thread to be had, it is done when it is asked for.
                    let _ =
                        std::thread::Builder::new().name("grammar".into()).spawn_scoped(scope, || constraint.prepare());
                }
                runner.run(&tokens, &mut |_| ControlFlow::Continue(()))
            })?;
        }
        if outcome.finish != Finish::Cancelled && tell(&stream.finish(), likely.as_mut(), on).is_break() {
            outcome.finish = Finish::Cancelled;
        }
        Ok(outcome)
    }

    /// Takes from disk what is pinned of `prompt`, where that is more than memory has.
    fn fetch(&mut self, prompt: &[u32]) {
        let Some(pinned) = &mut self.pinned else { return };
        let known = self.prefixes.covers(self.runner.state(), prompt);
        if let Some(state) = pinned.find(prompt, known, || self.runner.empty_cache()) {
            self.prefixes.replace(self.runner.state_mut(), state);
        }
    }

    /// Runs what is missing of `prompt`, and keeps what others may begin with. Whether it came to the end.
    fn read(
        &mut self,
        prompt: &[u32],
        cached: usize,
        branch: usize,
        on: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> bool {
        let marks = [self.first_turn(prompt), branch];
        let mut done = cached;
        while done < prompt.len() {
            let before = done;
            done = self.runner.batch(prompt, done);
            // A copy serves prompts that leave it a batch before its end.
            if marks.iter().any(|mark| (before + 1..=done).contains(mark)) {
                self.prefixes.keep(self.runner.state(), true);
            }
            if on(Progress::Prefill(done)).is_break() {
                return false;
            }
        }
        true
    }

    /// Where the instructions and tools of `prompt` end: at its second turn. 0 when there is none.
    fn first_turn(&self, prompt: &[u32]) -> usize {
        let turn = self.tokenizer.control_id("<|turn>");
        let mut turns = prompt.iter().enumerate().filter(|(_, token)| Some(**token) == turn);
        turns.nth(1).map_or(0, |(at, _)| at)
    }

    fn constraint(&mut self, format: &Format) -> Result<Constraint, GrammarError> {
        let grammars = match self.grammars.take() {
            Some(grammars) => grammars,
            None => Grammars::new(Arc::clone(&self.tokenizer), &self.defaults.eos)?,
        };
        self.grammars.insert(grammars).constraint(format)
    }
}

/// How likely the tokens of an answer are.
struct Likely {
    /// At the place of the next token.
    scores: Scores,
    /// Alternatives that are told.
    top: usize,
    /// Of tokens whose text is still to come.
    pending: Vec<Logprob>,
}

impl Likely {
    fn new(top: usize) -> Likely {
        Likely { scores: Scores::default(), top, pending: Vec::new() }
    }

    fn add(&mut self, token: u32) {
        self.pending.push(self.scores.of(token, self.top));
    }
}

fn tell(
    deltas: &[Delta],
    mut likely: Option<&mut Likely>,
    on: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    deltas.iter().try_for_each(|delta| {
        // Tokens of a stop text, which is never told, stay behind.
        if let (Delta::Text(_), Some(likely)) = (delta, &mut likely) {
            on(Progress::Logprobs(&std::mem::take(&mut likely.pending)))?;
        }
        on(Progress::Delta(delta))
    })
}
