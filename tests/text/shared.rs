//! Test data outside the repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use emberd::engine::tokenizer::Tokenizer;
use serde_json::Value;

/// `../shared/gemma4`, or `None` where it is missing and that is allowed.
pub(crate) fn gemma4() -> Option<PathBuf> {
    let shared = std::env::var_os("EMBERD_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let dir = shared.join("gemma4");
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing: set EMBERD_SHARED", dir.display());
    eprintln!("skipped: {} is missing", dir.display());
    None
}

/// The JSON file `name` of [`gemma4`].
pub(crate) fn json(name: &str) -> Option<Value> {
    let path = gemma4()?.join(name);
    Some(serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
}

/// A folder with the real tokenizer.json, unpacked once per build folder, and the chat template.
pub(crate) fn model_dir() -> Option<&'static Path> {
    static DIR: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let shared = gemma4()?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gemma4");
        std::fs::create_dir_all(&dir).unwrap();
        if !dir.join("tokenizer.json").exists() {
            let unpacked = tempfile::NamedTempFile::new_in(&dir).unwrap();
            let packed = std::fs::File::open(shared.join("tokenizer.json.xz")).unwrap();
            let out = Stdio::from(unpacked.reopen().unwrap());
            let status = Command::new("xz").arg("-dc").stdin(packed).stdout(out).status();
            assert!(status.expect("xz (package xz-utils) is needed").success());
            unpacked.persist(dir.join("tokenizer.json")).unwrap();
        }
        std::fs::write(dir.join("chat_template.jinja"), std::fs::read(shared.join("chat_template.jinja")).unwrap())
            .unwrap();
        Some(dir)
    });
    DIR.as_deref()
}

/// The real tokenizer, loaded once per run.
pub(crate) fn tokenizer() -> Option<&'static Tokenizer> {
    static TOKENIZER: LazyLock<Option<Tokenizer>> =
        LazyLock::new(|| Some(Tokenizer::load(&model_dir()?.join("tokenizer.json")).unwrap()));
    TOKENIZER.as_ref()
}

/// The text of `ids`, control tokens spelled.
pub(crate) fn spell(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    String::from_utf8(spell_bytes(tokenizer, ids)).unwrap()
}

/// As [`spell`], of ids that need not be text.
pub(crate) fn spell_lossy(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    String::from_utf8_lossy(&spell_bytes(tokenizer, ids)).into_owned()
}

fn spell_bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|id| match tokenizer.control_name(*id) {
            Some(name) => name.as_bytes(),
            None => tokenizer.token_bytes(*id),
        })
        .copied()
        .collect()
}
