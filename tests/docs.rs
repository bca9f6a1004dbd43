//! docs/configuration.md says what the code does: it is made here, and compared. `EMBERD_WRITE_DOCS=1 cargo test --test docs`
//! writes it anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use emberd::daemon::Config;
use emberd::daemon::config::Sources;
use emberd::daemon::reload::LIVE;

const HEAD: &str = "# Configuration

Made from the code by `tests/docs.rs`; do not edit.

Built-in values < `/etc/emberd/config.toml` < `/etc/emberd/conf.d/*.toml` in the order of their names <
`EMBERD__SECTION__KEY` in the environment < flags. `emberd check-config` prints what takes effect. An unknown key or a value
outside its range is an error that names it, and exit code 78. After a change: `systemctl restart emberd`, or, for the keys that
a running daemon takes over, `systemctl reload emberd`:
";

/// What the range check says of `key`, if it has one that a large number breaks.
fn accepted(key: &'static str) -> Option<String> {
    let flags = vec![(key, "4000000000".to_owned())];
    let empty = tempfile::NamedTempFile::new().expect("file");
    let sources = Sources { file: Some(empty.path().with_extension("toml")), environment: Some([].into()), flags };
    fs::write(sources.file.as_ref().expect("file"), "").expect("file");
    let result = Config::load(&sources);
    fs::remove_file(sources.file.as_ref().expect("file")).expect("file");
    let message = result.err()?.to_string();
    Some(message.strip_prefix(&format!("configuration, {key}: expected "))?.rsplit_once(", found ")?.0.to_owned())
}

/// The reference: sections, keys and what they mean from the example, whose keys and values a test in `daemon.rs` compares with
/// the code's; the ranges from the code.
fn reference(example: &str) -> String {
    let built_in = Config::default().to_toml();
    let live: Vec<String> = LIVE.iter().map(|key| format!("`{key}`")).collect();
    let mut out = format!("{HEAD}{}.\n", live.join(", "));
    let (mut section, mut meaning, mut few) = (String::new(), String::new(), false);
    for line in example.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            few = false;
            meaning.clear();
            let _ = writeln!(out, "\n## `[{name}]`\n\n| key | built in | accepted | |\n|---|---|---|---|");
        } else if let Some(name) = line.strip_prefix('#').filter(|rest| rest.starts_with('[')) {
            section = name.trim_matches(['[', ']']).to_owned();
            let _ = writeln!(out, "\n## `{name}`\n\n{meaning}\n\n| key | such as | |\n|---|---|---|");
            (few, meaning) = (true, String::new());
        } else if let Some(words) = line.strip_prefix("# ") {
            let _ = write!(meaning, "{}{words}", if meaning.is_empty() { "" } else { " " });
        } else if let Some((key, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = ")) {
            let meaning = std::mem::take(&mut meaning).replace('|', "\\|");
            if few {
                let _ = writeln!(out, "| `{key}` | `{value}` | {meaning} |");
                continue;
            }
            // A value that is not in the built-in configuration is an example.
            let known = built_in.split(&format!("[{section}]")).nth(1).is_some_and(|rest| {
                rest.lines().take_while(|l| !l.starts_with('[')).any(|l| l.starts_with(&format!("{key} = ")))
            });
            let shown = if known { format!("`{value}`") } else { format!("absent; such as `{value}`") };
            let range = accepted(Box::leak(format!("{section}.{key}").into_boxed_str())).unwrap_or_default();
            let _ = writeln!(out, "| `{key}` | {shown} | {range} | {meaning} |");
        } else if line.is_empty() {
            meaning.clear();
        }
    }
    out
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn the_configuration_reference_is_the_codes() {
    let example = fs::read_to_string(root().join("deploy/config.toml")).expect("example");
    let made = reference(&example);
    // Proves that both sources are read at all.
    assert!(made.contains("| `context` | `4096` | 16 to 1048576 |"), "{made}");
    let file = root().join("docs/configuration.md");
    if std::env::var_os("EMBERD_WRITE_DOCS").is_some() {
        fs::write(&file, &made).expect("written");
    }
    let found = fs::read_to_string(&file).expect("docs/configuration.md");
    assert!(
        found == made,
        "docs/configuration.md is not what the code says; EMBERD_WRITE_DOCS=1 cargo test --test docs"
    );
}

/// Links between the project's own pages lead somewhere.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn links_lead_somewhere() {
    let mut pages: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|p| root().join(p)).into();
    let docs = fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("entry").path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    let mut checked = 0;
    for page in pages {
        let text = fs::read_to_string(&page).expect("page");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains("://") {
                checked += 1;
                let path = page.parent().expect("directory").join(target);
                assert!(path.exists(), "{}: {target}", page.display());
            }
        }
    }
    assert!(checked > 5, "{checked} links");
}
