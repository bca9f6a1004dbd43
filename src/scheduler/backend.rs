//! What the scheduler drives: the engine, seen as plain data in and text out.
//!
//! The scheduler knows nothing of tensors; whoever owns a model implements [`Backend`] for it.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::Value;

pub use crate::engine::generate::Finish;
pub use crate::engine::grammar::Format;
pub use crate::engine::logprobs::{Logprob, MAX_TOP};
pub use crate::engine::tools::{Call, MAX_NAME, is_name};

/// Facts about the loaded model, for `/v1/models`, the retained MQTT `info` and the logs.
#[derive(Clone)]
pub struct ModelInfo {
    /// Name under which the model is offered.
    pub name: String,
    /// Tokens that prompt and answer share.
    pub context: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Name of the kernels in use: `scalar`, `neon`, `neondot`, `avx2`, `avx512vnni`.
    pub kernels: String,
    /// Threads that compute.
    pub threads: usize,
    /// Form of the KV cache: `int8` or `f32`.
    pub kv: String,
    /// Its tokens, shared with the engine.
    pub vocabulary: Arc<dyn Vocabulary>,
}

/// Text as the model's tokens, for who counts them or looks at them.
pub trait Vocabulary: Send + Sync {
    /// Ids of `text`, after what every text begins with when `begin`. Control tokens that are spelled in it are found when
    /// `controls`, else they are ordinary text, as in a request.
    fn encode(&self, text: &str, begin: bool, controls: bool) -> Vec<u32>;

    /// What `id` is in a text, a control token's spelling included; `None` when there is no such token.
    fn bytes(&self, id: u32) -> Option<Vec<u8>>;
}

/// What a prompt consists of, before it is tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A conversation for the checkpoint's chat template.
    Chat {
        /// Array of `{"role": …, "content": …}`.
        messages: Value,
        /// Array of tool definitions, or null.
        tools: Value,
        /// Whether the model may think before it answers.
        enable_thinking: bool,
    },
    /// Text that the model continues, without a template.
    Raw(String),
}

/// A request that the client has to change before it can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InputError {
    /// What was expected and what was found.
    pub message: String,
    /// The field at fault, as `messages[0].content`.
    pub param: Option<String>,
}

impl InputError {
    /// An error about the field `param`.
    pub fn new(param: impl Into<String>, message: impl Into<String>) -> InputError {
        InputError { message: message.into(), param: Some(param.into()) }
    }
}

/// How tokens are chosen; `None` is the checkpoint's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Candidates that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Probability mass that is kept.
    pub top_p: Option<f32>,
    /// Least probability relative to the most probable token.
    pub min_p: Option<f32>,
    /// 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Taken off the logits of tokens that the answer has, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// The same, for every time.
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, -100 to 100 each.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed and prompt give the same answer.
    pub seed: Option<u64>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// The form that the answer has.
    pub format: Option<Format>,
    /// The field that asked for it, empty where none did.
    pub format_field: &'static str,
    /// Whether calls of tools are read out of the answer.
    pub calls: bool,
    /// Whether it is told how likely the tokens of the text were, and with how many alternatives.
    pub logprobs: Option<usize>,
    /// Most tokens of the answer, thinking included. The scheduler always passes a number that fits the context.
    pub max_tokens: Option<usize>,
}

/// Progress of [`Backend::generate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'a> {
    /// The request is in order, its grammar too, and is computed from here on.
    Begun,
    /// `done` of `total` prompt tokens have been computed.
    Prefill {
        /// Prompt tokens computed so far.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
    },
    /// More of the answer.
    Text(&'a str),
    /// More of what the model thinks before it answers.
    Thought(&'a str),
    /// A call of a tool.
    Call(&'a Call),
    /// How likely the tokens of the text were that comes next.
    Logprobs(&'a [Logprob]),
    /// A token that gave no text yet.
    Tick,
}

/// What [`Backend::generate`] counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were known from earlier requests and not computed again.
    pub cached_tokens: usize,
    /// Where the prompt leaves the one before, when most of it is the same text nevertheless.
    pub broken_at: Option<usize>,
    /// Tokens generated, thinking and the end of the turn included.
    pub completion_tokens: usize,
    /// Those of them that belong to thoughts.
    pub thought_tokens: usize,
    /// The seed that was used, given or drawn.
    pub seed: u64,
}

/// Why [`Backend::generate`] gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerateError {
    /// The request is at fault.
    Input(InputError),
    /// The model cannot go on: a sentence for the log.
    Engine(String),
}

/// A model that turns prompts into text; owned by the engine thread.
pub trait Backend {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Token ids of `input`.
    ///
    /// # Errors
    ///
    /// When the conversation is one that the template refuses: the client's fault.
    fn encode(&self, input: &Input) -> Result<Vec<u32>, InputError>;

    /// Called twice a second while there is nothing to do: memory may be given back.
    fn idle(&mut self) {}

    /// Generates until the end and calls `on` after every prompt chunk and every token; `Break` ends it there.
    ///
    /// # Errors
    ///
    /// The form of the answer cannot be had, or the model cannot go on.
    fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, GenerateError>;
}
