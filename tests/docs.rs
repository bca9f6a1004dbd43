//! docs/configuration.md says what the code does: it is made here, and compared; so are the figures of docs/dependencies.md.
//! `EMBERD_WRITE_DOCS=1 cargo test --test docs` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use emberd::daemon::config::Sources;
use emberd::daemon::reload::LIVE;
use emberd::daemon::{Config, exit};

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

/// What a direct dependency brings in: itself, its licence, and all that is linked with it.
struct Brought {
    licence: String,
    all: BTreeSet<String>,
}

/// The direct dependencies by name, of the shipped binary or of everything that is built for tests.
fn direct(arguments: &[&str]) -> BTreeMap<String, Brought> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["tree", "--quiet", "--locked", "--target", "aarch64-unknown-linux-gnu"]);
    command.args(["--prefix", "depth", "--no-dedupe", "--format", "|{p}|{l}"]).args(arguments);
    let output = command.output().expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<String, Brought> = BTreeMap::new();
    let mut under = String::new();
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let mut parts = line.split('|');
        let (Some(depth), Some(package), Some(licence)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if depth == "0" {
            continue;
        }
        if depth == "1" {
            under = package.split(' ').next().expect("name").to_owned();
            let licence = licence.replace('/', " OR ");
            found.insert(under.clone(), Brought { licence, all: BTreeSet::new() });
        }
        found.get_mut(&under).expect("inside of a direct one").all.insert(package.to_owned());
    }
    found
}

/// Fills licence and numbers of the table's lines in; the names that have a line.
fn fill(table: &str, known: &BTreeMap<String, Brought>) -> (String, Vec<String>) {
    let mut names = Vec::new();
    let lines = table.lines().map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, _, _, _, reason, _] = cells[..] else { return format!("{line}\n") };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else {
            return format!("{line}\n");
        };
        assert!(reason.len() > 10, "{name}: without a reason");
        names.push(name.to_owned());
        let Some(brought) = known.get(name) else { return String::new() };
        let others: BTreeSet<&String> =
            known.iter().filter(|(other, _)| *other != name).flat_map(|(_, other)| &other.all).collect();
        let (all, alone) = (brought.all.len(), brought.all.iter().filter(|package| !others.contains(package)).count());
        format!("| `{name}` | {} | {all} | {alone} | {reason} |\n", brought.licence)
    });
    (lines.collect(), names)
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn every_dependency_has_its_reason_and_its_size() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).expect("manifest").parse().expect("TOML");
    let table = |name: &str| manifest[name].as_table().expect("table").clone();
    let optional = |value: &toml::Value| value.get("optional").and_then(toml::Value::as_bool) == Some(true);
    let (mut shipped, mut other) = (Vec::new(), Vec::new());
    for (name, value) in table("dependencies") {
        if optional(&value) { other.push(name) } else { shipped.push(name) }
    }
    other.extend(table("dev-dependencies").into_iter().map(|(name, _)| name).filter(|name| !shipped.contains(name)));
    other.sort_unstable();

    let linked = direct(&["--no-default-features", "--edges", "normal,no-proc-macro"]);
    let built = direct(&["--all-features", "--edges", "normal,dev,no-proc-macro"]);
    let crates = linked.values().flat_map(|brought| &brought.all).collect::<BTreeSet<_>>().len();
    assert!(crates > 50, "{crates}");

    let file = root().join("docs/dependencies.md");
    let found = fs::read_to_string(&file).expect("docs/dependencies.md");
    let (first, second) = found.split_once("## Not in the shipped binary").expect("two tables");
    let (first, first_names) = fill(first, &linked);
    let (second, second_names) = fill(second, &built);
    assert_eq!(first_names, shipped, "docs/dependencies.md, linked into the shipped binary: as in Cargo.toml");
    assert_eq!(second_names, other, "docs/dependencies.md, not in the shipped binary: as in Cargo.toml");
    let counted = |text: &str| {
        let (before, after) = text.split_once(" crates are linked").expect("the number of crates");
        let start = before.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |at| at + 1);
        format!("{}{crates} crates are linked{after}", &before[..start])
    };
    let made = counted(&format!("{first}## Not in the shipped binary{second}"));
    let readme = root().join("README.md");
    let read = fs::read_to_string(&readme).expect("README.md");
    if std::env::var_os("EMBERD_WRITE_DOCS").is_some() {
        fs::write(&file, &made).expect("written");
        fs::write(&readme, counted(&read)).expect("written");
        return;
    }
    assert!(
        found == made,
        "docs/dependencies.md is not what Cargo.lock says; EMBERD_WRITE_DOCS=1 cargo test --test docs"
    );
    assert!(read == counted(&read), "README.md: {crates} crates are linked");
}

/// docs/operations.md has the exit codes of the code, and no others; so have `--help` and README.md.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn every_exit_code_is_explained() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("file");
    let numbers = |text: &str| text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let code: BTreeSet<u8> = read("src/daemon/error.rs")
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("pub const ")?.split_once(": u8 = ")?.1.strip_suffix(';')?.parse().ok()
        })
        .collect();
    assert!(code.contains(&exit::CONFIG) && code.len() > 5, "{code:?}");
    let page = read("docs/operations.md");
    let section = page.split("## Exit codes").nth(1).expect("section").split("\n## ").next().expect("section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()?.parse().ok());
    assert_eq!(rows.collect::<BTreeSet<u8>>(), code, "docs/operations.md");
    for (name, from, to) in [("README.md", "Exit codes: ", ".\n"), ("src/daemon/cli/mod.rs", "Exit codes: ", "\\nConf")]
    {
        let text = read(name);
        let sentence = text.split(from).nth(1).expect("exit codes").split(to).next().expect("end");
        let named: BTreeSet<u8> = numbers(sentence);
        assert!(named.is_subset(&code) && code.len() - named.len() <= 1, "{name}: {named:?} of {code:?}");
    }
}

/// Text between the parenthesis at the beginning and its end, with string literals left in.
fn inside(text: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return &text[..at];
                }
            }
            _ => {}
        }
    }
    text
}

/// Every warning and error that the code logs has a line in docs/operations.md: its words, with `…` for what differs.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn every_warning_is_explained() {
    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("sources") {
            let path = entry.expect("entry").path();
            if path.is_dir() { sources(&path, found) } else { found.push(path) }
        }
    }
    let page = fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md");
    let section = page.split("## Log lines").nth(1).expect("section").split("\n## ").next().expect("section");
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let known: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let (mut files, mut logged) = (Vec::new(), Vec::new());
    sources(&root().join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("source");
        for (at, _) in text.match_indices("warn!(").chain(text.match_indices("error!(")) {
            let call = inside(&text[at..]);
            // The message is what stands last.
            let message = call.rsplit('"').nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            logged.push((file.clone(), message));
        }
    }
    assert!(logged.len() > 20, "{logged:?}");
    for (file, message) in &logged {
        let explained = known.iter().any(|words| words.split('…').all(|part| message.contains(part.trim())));
        assert!(explained, "{}: \"{message}\" is not in docs/operations.md", file.display());
    }
}
