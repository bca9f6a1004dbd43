//! From the section `[model]` to something that the scheduler can drive.

use std::ops::ControlFlow;

use super::config::{self, Kv};
use crate::engine::generate::{Engine, Progress};
use crate::engine::kv_cache::KvKind;
use crate::engine::runner::Options;
use crate::engine::stream::Delta;
use crate::engine::template::{ChatRequest, TemplateError};
use crate::scheduler::backend::{Backend, Input, InputError, ModelInfo, Outcome, Sampling, Step};

/// Loads the model.
///
/// # Errors
///
/// When it cannot be used, naming the file.
pub(super) fn load(model: &config::Model) -> Result<Box<dyn Backend>, String> {
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
    let engine = Engine::load(&model.path, &options).map_err(|error| error.to_string())?;
    let runner = engine.runner();
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
    };
    Ok(Box::new(Loaded { engine, info }))
}

struct Loaded {
    engine: Engine,
    info: ModelInfo,
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

    fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, String> {
        let mut params = self.engine.default_sampling();
        params.temperature = sampling.temperature.unwrap_or(params.temperature);
        params.top_k = sampling.top_k.map_or(params.top_k, |k| u32::try_from(k).unwrap_or(0));
        params.top_p = sampling.top_p.unwrap_or(params.top_p);
        params.min_p = sampling.min_p.unwrap_or(params.min_p);
        params.repetition_penalty = sampling.repetition_penalty.unwrap_or(params.repetition_penalty);
        params.seed = sampling.seed;
        let max_tokens = sampling.max_tokens.unwrap_or(self.info.context);
        let total = prompt.len();
        let mut tell = |progress: Progress<'_>| {
            on(match progress {
                Progress::Prefill(done) => Step::Prefill { done, total },
                Progress::Delta(Delta::Text(text)) => Step::Text(text),
                Progress::Delta(Delta::Thought(text)) => Step::Thought(text),
                Progress::Token => Step::Tick,
            })
        };
        let outcome = self.engine.generate(prompt, params, &sampling.stop, max_tokens, &mut tell);
        let outcome = outcome.map_err(|error| error.to_string())?;
        Ok(Outcome {
            finish: outcome.finish,
            prompt_tokens: total,
            completion_tokens: outcome.completion_tokens,
            seed: outcome.seed,
        })
    }
}
