//! From the configuration to something that the scheduler can drive.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::calibrate;
use super::config::{Config, Kv};
use super::pace::Pace;
use super::packed;
use super::prefixes;
use crate::engine::checkpoint::summary::Summary;
use crate::engine::generate::{Engine, GenerateError as EngineError, Progress, Wanted};
use crate::engine::kv_cache::KvKind;
use crate::engine::runner::Options;
use crate::engine::stream::Delta;
use crate::engine::template::{ChatRequest, TemplateError};
use crate::engine::tokenizer::Tokenizer;
use crate::governor::policy::Need;
use crate::governor::sensors::{self, Sensors};
use crate::governor::{Admission, Decision, Handle, Level, Phase, Speeds, Work};
use crate::scheduler::backend::{
    Backend, GenerateError, Input, InputError, ModelInfo, Outcome, Sampling, Step, Vocabulary,
};

/// Memory that the kernel and its services take of a small machine, and what a control group needs besides the model.
const SYSTEM: u64 = 96 << 20;
const PROCESS: u64 = 24 << 20;

/// Loads the model and tells `governor` of it.
///
/// # Errors
///
/// When it cannot be used, naming the file, or when this machine can never hold it.
pub(super) fn load(config: &Config, governor: &Handle) -> Result<Box<dyn Backend>, String> {
    let model = &config.model;
    // The variable is for trying things out on a running system, so it wins over the file.
    let forced = std::env::var("EMBERD_KERNELS").ok().filter(|name| !name.is_empty());
    let kernels = forced.unwrap_or_else(|| model.kernels.clone());
    let options = Options {
        kv: match model.kv {
            Kv::Int8 => KvKind::Int8,
            Kv::F32 => KvKind::F32,
        },
        context: model.context,
        threads: model.threads,
        kernels: (kernels != "auto").then_some(kernels),
        ..Options::default()
    };
    let path = packed::place(model)?;
    let mut engine = Engine::load(&path, &options).map_err(|error| error.to_string())?;
    let mut need = need(&engine.runner().summary(), engine.runner().context(), model.kv);
    need.reserve = config.governor.reserve_mb << 20;
    check_floor(&need)?;
    packed::tidy(&path);
    if config.governor.lock_weights {
        lock(&engine, &need);
    }
    let threads = engine.runner().compute().pool.threads();
    let chunk = options.batch;
    let key = key(&engine, &model.path, threads);
    let file = config.governor.speeds_file();
    let speeds = file.as_ref().and_then(|file| calibrate::known(file, &key, threads));
    let speeds = match speeds {
        Some(speeds) => speeds,
        None if config.governor.enabled && config.governor.calibrate && threads > 1 => {
            let speeds = calibrate::measure(engine.runner_mut());
            if let Some(file) = &file {
                calibrate::keep(file, &key, speeds.clone());
            }
            speeds
        }
        None => Speeds::unknown(threads),
    };
    governor.loaded(need, speeds, Decision::unlimited(threads, chunk));
    let runner = engine.runner();
    let pace = Pace::new(governor.clone(), runner.knobs().clone(), threads, config.governor.enabled);
    let info = ModelInfo {
        name: model.name(),
        context: runner.context(),
        vocab: runner.config().vocab_size,
        kernels: runner.compute().kernels.name().into(),
        threads: runner.compute().pool.threads(),
        kv: match model.kv {
            Kv::Int8 => "int8".into(),
            Kv::F32 => "f32".into(),
        },
        vocabulary: Arc::new(Words { tokenizer: Arc::clone(engine.tokenizer()), begin: runner.config().bos }),
    };
    let budget = (config.cache.memory_mb << 20) as usize;
    engine.limit_prefixes(budget);
    prefixes::pin(&mut engine, config)?;
    let (governor, keep) = (governor.clone(), file.map(|file| (file, key)));
    Ok(Box::new(Loaded { engine, info, pace, governor, budget, keep }))
}

/// What the governor has to know of the model.
fn need(summary: &Summary, context: usize, kv: Kv) -> Need {
    let width = match kv {
        Kv::Int8 => 1,
        Kv::F32 => 4,
    };
    let memory = summary.memory(context);
    Need {
        weights: memory.weights + memory.activations,
        // Sliding layers keep a window only: a little too much for long contexts.
        position: width * memory.kv / context.max(1) as u64,
        context,
        reserve: 0,
    }
}

/// Refuses a model that cannot stay in memory whatever else is done: every token would read it from the disk.
fn check_floor(need: &Need) -> Result<(), String> {
    let sample = Sensors::new(Path::new("/"), 1).read(std::time::Instant::now(), Work::default());
    let Some(memory) = sample.memory else { return Ok(()) };
    let (most, whose) = match memory.limit.filter(|limit| *limit < memory.total) {
        Some(limit) => (limit.saturating_sub(PROCESS), "the control group"),
        None => (memory.total.saturating_sub(SYSTEM), "this machine"),
    };
    let wanted = need.weights + need.position * need.context as u64;
    if wanted <= most {
        return Ok(());
    }
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    let fit = most.saturating_sub(need.weights) / need.position.max(1);
    let remedy = if fit >= 256 {
        format!("`context = {}` in the section [model] would fit", fit / 256 * 256)
    } else {
        format!("no context fits: {} MB are the least for this model", mb(need.weights + 256 * need.position))
    };
    Err(format!(
        "memory: the model with a context of {} needs {} MB, {whose} has {} MB for it; {remedy}",
        need.context,
        mb(wanted),
        mb(most)
    ))
}

/// Locks the weights where that leaves the rest of the system what it shall have; says what was done, and does without
/// otherwise.
fn lock(engine: &Engine, need: &Need) {
    let sample = Sensors::new(Path::new("/"), 1).read(std::time::Instant::now(), Work::default());
    let wanted = need.weights + need.position * need.context as u64 + need.reserve;
    if let Some(memory) = sample.memory.filter(|memory| memory.available < wanted) {
        let (available, wanted) = (memory.available >> 20, wanted.div_ceil(1 << 20));
        tracing::warn!("governor.lock_weights: not locked, {wanted} MB are needed and {available} MB available");
        return;
    }
    match engine.runner().lock_weights() {
        Ok(bytes) => tracing::info!("{} MB of weights locked in memory", bytes >> 20),
        Err(error) => tracing::warn!(
            "governor.lock_weights: not locked: {error}; set LimitMEMLOCK=infinity in the unit (ulimit -l elsewhere)"
        ),
    }
}

/// What the measured speeds belong to: another board, model or instruction set has others.
fn key(engine: &Engine, path: &Path, threads: usize) -> String {
    let board = sensors::board(Path::new("/")).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let runner = engine.runner();
    let bytes = runner.summary().weights_per_token;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{board}, {threads} threads, {}: {name}, {bytes} bytes a token", runner.compute().kernels.name())
}

/// The tokenizer, for those outside of the engine's thread.
struct Words {
    tokenizer: Arc<Tokenizer>,
    /// What every text begins with.
    begin: Option<u32>,
}

impl Vocabulary for Words {
    fn encode(&self, text: &str, begin: bool, controls: bool) -> Vec<u32> {
        let ids = match controls {
            true => self.tokenizer.encode_prompt(&self.tokenizer.split_controls(text)),
            false => self.tokenizer.encode_text(text),
        };
        self.begin.filter(|_| begin).into_iter().chain(ids).collect()
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let known = (id as usize) < self.tokenizer.vocab_size();
        let control = self.tokenizer.is_control(id).then(|| self.tokenizer.control_name(id)).flatten();
        known.then(|| control.map_or_else(|| self.tokenizer.token_bytes(id), str::as_bytes).to_vec())
    }
}

struct Loaded {
    engine: Engine,
    info: ModelInfo,
    pace: Pace,
    governor: Handle,
    /// Bytes for the beginnings of earlier prompts.
    budget: usize,
    /// Where the speeds are kept, and under which name.
    keep: Option<(std::path::PathBuf, String)>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Some((file, key)) = &self.keep {
            calibrate::keep(file, key, self.governor.speeds());
        }
    }
}

impl Loaded {
    /// Keeps of earlier prompts what the configuration and the governor allow.
    fn limit_prefixes(&mut self) {
        let decision = self.governor.decision();
        // A request that may need all there is comes first.
        let short = matches!(decision.admission, Admission::Positions(_) | Admission::LowMemory);
        let allowed = if short { 0 } else { usize::try_from(decision.cache_bytes).unwrap_or(usize::MAX) };
        self.engine.limit_prefixes(allowed.saturating_sub(self.engine.runner().kv_bytes()).min(self.budget));
    }

    /// As [`Loaded::limit_prefixes`], and of the latest request's keys and values too: between requests.
    fn limit_cache(&mut self) {
        self.limit_prefixes();
        if self.engine.runner().kv_bytes() as u64 > self.governor.decision().cache_bytes {
            self.engine.runner_mut().release();
        }
        self.governor.running(false, self.engine.cache_bytes());
    }
}

impl Loaded {
    /// Computes a batch of a pinned beginning that is not on disk yet: a request that comes meanwhile waits for no more than that.
    /// Done only while heat and memory leave room.
    fn prepare(&mut self) {
        let Some(bytes) = self.engine.unprepared() else { return };
        let decision = self.governor.decision();
        let well = decision.level == Level::Nominal && matches!(decision.admission, Admission::Open);
        // In its place, and once more while it is written and kept.
        if !well || decision.cache_bytes < 2 * bytes as u64 {
            return;
        }
        self.pace.begin();
        let ran = self.engine.prepare();
        let _ = self.pace.done(Phase::Prefill, ran, &mut || ControlFlow::Break(()));
        self.governor.running(false, self.engine.cache_bytes());
    }
}

impl Backend for Loaded {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn encode(&self, input: &Input) -> Result<Vec<u32>, InputError> {
        let (messages, tools, enable_thinking) = match input {
            Input::Raw(text) => return Ok(self.engine.encode_text(text)),
            Input::Chat { messages, tools, enable_thinking } => (messages, tools, *enable_thinking),
        };
        let list = |value: &serde_json::Value| value.as_array().cloned();
        let messages = list(messages).ok_or_else(|| InputError::new("messages", "messages: expected an array"))?;
        let request = ChatRequest { messages, tools: list(tools), enable_thinking: Some(enable_thinking) };
        self.engine.encode_chat(&request).map_err(|error| match &error {
            TemplateError::Request(request) => InputError::new(request.field.clone(), error.to_string()),
            _ => InputError::new("messages", error.to_string()),
        })
    }

    fn idle(&mut self) {
        self.limit_cache();
        self.prepare();
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, GenerateError> {
        let mut params = self.engine.default_sampling();
        params.temperature = sampling.temperature.unwrap_or(params.temperature);
        params.top_k = sampling.top_k.map_or(params.top_k, |k| u32::try_from(k).unwrap_or(0));
        params.top_p = sampling.top_p.unwrap_or(params.top_p);
        params.min_p = sampling.min_p.unwrap_or(params.min_p);
        params.repetition_penalty = sampling.repetition_penalty.unwrap_or(params.repetition_penalty);
        params.presence_penalty = sampling.presence_penalty.unwrap_or(0.0);
        params.frequency_penalty = sampling.frequency_penalty.unwrap_or(0.0);
        params.logit_bias.clone_from(&sampling.logit_bias);
        params.seed = sampling.seed;
        let max_tokens = sampling.max_tokens.unwrap_or(self.info.context);
        let total = prompt.len();
        self.limit_prefixes();
        self.governor.running(true, self.engine.cache_bytes());
        let pace = &mut self.pace;
        pace.begin();
        let (mut read, mut written) = (0, 0);
        let mut tell = |progress: Progress<'_>| match progress {
            Progress::Cached(known) => {
                read = known;
                on(Step::Begun)
            }
            Progress::Prefill(done) => {
                let step = Step::Prefill { done, total };
                let more = done - std::mem::replace(&mut read, done);
                on(step)?;
                pace.done(Phase::Prefill, more, &mut || on(step))
            }
            Progress::Delta(Delta::Text(text)) => on(Step::Text(text)),
            Progress::Delta(Delta::Thought(text)) => on(Step::Thought(text)),
            Progress::Delta(Delta::Call(call)) => on(Step::Call(call)),
            Progress::Logprobs(tokens) => on(Step::Logprobs(tokens)),
            Progress::Token(ran) => {
                written += 1;
                on(Step::Tick)?;
                // The first token comes out of the prompt's last chunk.
                if written == 1 {
                    pace.skip();
                    return ControlFlow::Continue(());
                }
                // Several at once say nothing of the speed of one.
                pace.done(Phase::Decode, usize::from(ran == 1), &mut || on(Step::Tick))
            }
        };
        let (stops, format, calls) = (&sampling.stop[..], sampling.format.as_ref(), sampling.calls);
        let wanted = Wanted { stops, format, calls, logprobs: sampling.logprobs, max_tokens };
        let outcome = self.engine.generate(prompt, params, wanted, &mut tell);
        self.limit_cache();
        let outcome = outcome.map_err(|error| match error {
            EngineError::Format(_) => {
                let field = sampling.format_field;
                GenerateError::Input(InputError::new(field, format!("{field}: {error}")))
            }
            _ => GenerateError::Engine(error.to_string()),
        })?;
        Ok(Outcome {
            finish: outcome.finish,
            prompt_tokens: total,
            cached_tokens: outcome.cached_tokens,
            broken_at: outcome.broken_at,
            completion_tokens: outcome.completion_tokens,
            thought_tokens: outcome.thought_tokens,
            seed: outcome.seed,
        })
    }
}
