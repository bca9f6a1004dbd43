//! Token ids in, logits out: a loaded model with its cache and the machinery that computes it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::checkpoint::config::Config;
use crate::engine::checkpoint::source::Source;
use crate::engine::checkpoint::summary::Summary;
use crate::engine::checkpoint::{Checkpoint, CheckpointError, GenerationDefaults};
use crate::engine::kv_cache::{KvCache, KvKind};
use crate::engine::model::{Activations, Keep, Model};
use crate::engine::ops::{Compute, MAX_BATCH};
use crate::engine::prefix::State;
use crate::kernels::{self, UnknownKernels};
use crate::parallel::Pool;
use crate::stats::Stats;

/// How to run a checkpoint.
#[derive(Clone, Debug)]
pub struct Options {
    /// Storage of keys and values.
    pub kv: KvKind,
    /// Most positions, prompt and answer together; 0 takes what the model was made for.
    pub context: usize,
    /// Threads that compute; 0 takes one per CPU.
    pub threads: usize,
    /// Instruction set by name; `None` takes the best one that the CPU has.
    pub kernels: Option<String>,
    /// Prompt tokens that go through the layers together, 1 to [`MAX_BATCH`].
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { kv: KvKind::Int8, context: 4096, threads: 0, kernels: None, batch: 64 }
    }
}

/// Why a checkpoint cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files are not what they should be.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The instruction set that was asked for is not to be had.
    #[error(transparent)]
    Kernels(#[from] UnknownKernels),
    /// No threads.
    #[error("cannot start {threads} compute threads: {source}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// int8 was asked for, but the checkpoint does not say on what grid.
    #[error(
        "{}: layers.{layer}.self_attn.{name}: expected a positive step, which an int8 KV cache needs, found none; \
         use kv = \"f32\"",
        dir.display()
    )]
    NoCacheScale {
        /// The checkpoint.
        dir: PathBuf,
        /// The layer.
        layer: usize,
        /// The tensor.
        name: &'static str,
    },
}

/// Why tokens cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// No position left.
    #[error("{tokens} more tokens do not fit: {used} of {context} positions are in use")]
    ContextFull {
        /// Tokens that were to be added.
        tokens: usize,
        /// Positions in use.
        used: usize,
        /// Positions there are.
        context: usize,
    },
    /// Not a token of this model.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Nothing to run.
    #[error("there are no tokens to run")]
    NoTokens,
}

/// What may be changed while a model runs; clones are the same. It takes effect at the next batch of a prompt or the next
/// token and changes no result.
#[derive(Clone, Debug, Default)]
pub struct Knobs(Arc<[AtomicUsize; 3]>);

impl Knobs {
    /// Threads for prompts and for answers, and tokens of a batch; 0 and what is too large mean all there are.
    pub fn set(&self, prefill: usize, decode: usize, batch: usize) {
        for (knob, value) in self.0.iter().zip([prefill, decode, batch]) {
            knob.store(value, Ordering::Relaxed);
        }
    }

    /// What was set, or `all` instead of 0.
    fn get(&self, knob: usize, all: usize) -> usize {
        match self.0[knob].load(Ordering::Relaxed) {
            0 => all,
            value => value.min(all),
        }
    }
}

/// A model that runs.
pub struct Runner {
    knobs: Knobs,
    on: Compute,
    model: Model,
    state: State,
    act: Activations,
    context: usize,
    batch: usize,
}

impl Runner {
    /// Opens and validates the model at `path`, a Hugging Face directory or a packed file, and starts the threads.
    pub fn load(path: &Path, options: &Options) -> Result<Runner, LoadError> {
        Runner::of(&Source::open(path)?, options)
    }

    /// As [`Runner::load`], of a source that is open.
    pub fn of(source: &Source, options: &Options) -> Result<Runner, LoadError> {
        let kernels = kernels::select(options.kernels.as_deref())?;
        let best = kernels::available()[0].name();
        if options.kernels.is_none() && kernels.name() != best {
            let instead = kernels.name();
            tracing::warn!("the {best} kernels compute wrongly on this CPU, using {instead}; please report this");
        }
        let checkpoint = Checkpoint::load(source)?;
        if options.kv == KvKind::Int8 {
            check_cache_steps(source.path(), &checkpoint)?;
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let pool = Pool::new(threads).map_err(|source| LoadError::Threads { threads, source })?;
        let limit = checkpoint.config.max_position_embeddings;
        Ok(Runner {
            knobs: Knobs::default(),
            state: State::new(KvCache::new(&checkpoint.config, options.kv)),
            act: Activations::new(&pool),
            context: if options.context == 0 { limit } else { options.context.min(limit) },
            batch: options.batch.clamp(1, MAX_BATCH),
            model: Model::new(checkpoint),
            on: Compute { kernels, pool, stats: Stats::default() },
        })
    }

    /// Shapes of the model.
    pub fn config(&self) -> &Config {
        &self.model.net.config
    }

    /// What the model costs.
    pub fn summary(&self) -> Summary {
        Summary::new(&self.model.net.config, self.model.net.prefix)
    }

    /// Where an answer ends and how its tokens are drawn, as the checkpoint has it.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.model.net.generation
    }

    /// Instruction set, threads and counters.
    pub fn compute(&self) -> &Compute {
        &self.on
    }

    /// Most positions.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Positions in use.
    pub fn position(&self) -> usize {
        self.state.len()
    }

    /// Bytes that keys and values take now.
    pub fn kv_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// How keys and values are stored.
    pub fn kv(&self) -> KvKind {
        self.state.cache().kind()
    }

    /// A cache as this model needs it.
    pub(super) fn empty_cache(&self) -> KvCache {
        KvCache::new(self.config(), self.kv())
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.state.cut(0);
    }

    /// The tokens run so far and what is kept of them.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// As [`Runner::state`], to put another one there.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// What may be changed while it runs.
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// Keeps the weights that every token reads in memory; how many bytes that are.
    ///
    /// # Errors
    ///
    /// When the limit of locked memory (RLIMIT_MEMLOCK) does not allow it, or memory is too short. Nothing is locked then.
    pub fn lock_weights(&self) -> std::io::Result<u64> {
        self.model.net.weights.lock()
    }

    /// Forgets all tokens and gives the memory of their keys and values back.
    pub fn release(&mut self) {
        self.state.release();
    }

    /// Runs `tokens` and returns the logits `[vocab]` after the last one; `None` when `progress` (called with the number of
    /// tokens done after every batch) breaks.
    pub fn run(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<&mut [f32]>, RunError> {
        self.check(tokens, self.position())?;
        let mut done = 0;
        while done < tokens.len() {
            done = self.batch(tokens, done);
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(self.act.logits_mut()))
    }

    /// Whether `prompt` can be run from the first position on.
    ///
    /// # Errors
    ///
    /// As [`Runner::run`].
    pub fn accepts(&self, prompt: &[u32]) -> Result<(), RunError> {
        self.check(prompt, 0)
    }

    /// Runs the batch of `tokens` that follows the first `done`, and says how many are done then. After the last one there
    /// are [`Runner::scores`]. The caller has asked [`Runner::accepts`].
    pub(super) fn batch(&mut self, tokens: &[u32], done: usize) -> usize {
        // One token is a step of an answer, and bound by memory, wherever it comes from.
        let phase = usize::from(tokens.len() == 1);
        self.on.pool.set_width(self.knobs.get(phase, self.on.pool.threads()));
        let end = tokens.len().min(done + self.knobs.get(2, self.batch));
        let keep = if end == tokens.len() { Keep::Last } else { Keep::None };
        self.state.seen(&tokens[done..end]);
        self.model.forward(&self.on, self.state.cache_mut(), &mut self.act, &tokens[done..end], keep);
        end
    }

    /// The logits `[vocab]` after the last token.
    pub(super) fn scores(&mut self) -> &mut [f32] {
        self.act.logits_mut()
    }

    /// Runs `tokens` through all layers, `batch` at a time, and hands over the logits `[batch, vocab]` of every batch.
    pub fn logits(&mut self, tokens: &[u32], batch: usize, each: &mut dyn FnMut(&[f32])) -> Result<(), RunError> {
        self.check(tokens, self.position())?;
        for batch in tokens.chunks(batch.clamp(1, MAX_BATCH)) {
            self.state.seen(batch);
            each(self.model.forward(&self.on, self.state.cache_mut(), &mut self.act, batch, Keep::All));
        }
        Ok(())
    }

    /// The logits `[guesses, vocab]` after each of the guessed next tokens (at most [`MAX_BATCH`]), which are forgotten again.
    ///
    /// # Errors
    ///
    /// As [`Runner::run`].
    pub fn verify(&mut self, guesses: &[u32]) -> Result<&[f32], RunError> {
        let position = self.position();
        self.check(guesses, position)?;
        assert!(guesses.len() <= MAX_BATCH, "{} guesses", guesses.len());
        self.state.seen(guesses);
        let logits = self.model.forward(&self.on, self.state.cache_mut(), &mut self.act, guesses, Keep::All);
        self.state.cut(position);
        Ok(logits)
    }

    fn check(&self, tokens: &[u32], used: usize) -> Result<(), RunError> {
        let (context, vocab) = (self.context, self.config().vocab_size);
        if tokens.is_empty() {
            return Err(RunError::NoTokens);
        }
        if tokens.len() > context - used {
            return Err(RunError::ContextFull { tokens: tokens.len(), used, context });
        }
        match tokens.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(RunError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }
}

fn check_cache_steps(dir: &Path, checkpoint: &Checkpoint) -> Result<(), LoadError> {
    for (layer, weights) in checkpoint.weights.layers.iter().enumerate() {
        let Some(kv) = &weights.kv else { continue };
        for (name, step) in [("k_cache_scale", kv.k_step), ("v_cache_scale", kv.v_step)] {
            if step == 0.0 {
                return Err(LoadError::NoCacheScale { dir: dir.to_path_buf(), layer, name });
            }
        }
    }
    Ok(())
}
