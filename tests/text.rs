//! Text in, text out, on the real vocabulary and chat template of `../shared`.

mod text {
    mod grammar;
    mod sampler;
    mod shared;
    mod stream;
    mod template;
    mod tokenizer;
}
