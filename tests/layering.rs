//! The rules of the source tree: arrows go down, `unsafe` and `tokio` stay where they belong, files stay readable.

use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: [(&str, u32); 9] = [
    ("daemon", 6),
    ("transport", 5),
    ("scheduler", 4),
    ("governor", 3),
    ("engine", 2),
    ("kernels", 1),
    ("parallel", 1),
    ("spool", 1),
    ("stats", 0),
];

fn layer(module: &str) -> Option<u32> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// Path below `src/` without the extension, as components, and the text before the file's unit tests.
fn sources() -> Vec<(Vec<String>, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("readable source tree") {
            let path = entry.expect("directory entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 20, "only {} source files found", files.len());
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).expect("UTF-8 source");
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_string();
            let relative = file.strip_prefix(&root).expect("below src").with_extension("");
            (relative.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect(), code)
        })
        .collect()
}

/// The text without comments, so that prose may name what code may not.
fn code_lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn first_segment(rest: &str) -> String {
    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn report(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn arrows_go_down() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        let Some(own) = layer(&path[0]) else {
            assert!(path == ["lib"] || path == ["main"], "src/{} has no layer", path.join("/"));
            continue;
        };
        for (number, line) in code_lines(&code) {
            for (at, _) in line.match_indices("crate::") {
                let target = first_segment(&line[at + "crate::".len()..]);
                let Some(other) = layer(&target) else {
                    violations.push(format!("{}:{}: crate::{target} is no layer", path.join("/"), number + 1));
                    continue;
                };
                if target != path[0] && other >= own {
                    violations.push(format!("{}:{}: {} uses {target}", path.join("/"), number + 1, path[0]));
                }
            }
        }
    }
    report(&violations);
}

#[test]
fn children_do_not_use_their_parents() {
    let all = sources();
    let exists = |module: &[String]| {
        all.iter().any(|(path, _)| path == module || (path.len() > module.len() && path.starts_with(module)))
    };
    let mut violations = Vec::new();
    for (path, code) in &all {
        // conformance.rs is a test of everything its parent lists.
        if layer(&path[0]).is_none() || path.iter().any(|name| name == "conformance") {
            continue;
        }
        let parent = &path[..path.len() - 1];
        let own = if path.last().is_some_and(|name| name == "mod") { parent } else { &path[..] };
        let outer = &own[..own.len() - 1];
        for (number, line) in code_lines(code) {
            if line.contains("pub(in") || !line.contains("super::") {
                continue;
            }
            for (at, _) in line.match_indices("super::") {
                let mut target = outer.to_vec();
                let mut rest = &line[at + "super::".len()..];
                while let Some(up) = rest.strip_prefix("super::") {
                    target.pop();
                    rest = up;
                }
                if line[..at].ends_with("super::") || rest.starts_with('{') {
                    continue;
                }
                target.push(first_segment(rest));
                if !exists(&target) {
                    violations.push(format!("{}:{}: {}", path.join("/"), number + 1, line.trim()));
                }
            }
        }
    }
    report(&violations);
}

#[test]
fn unsafe_and_tokio_stay_in_their_places() {
    let may_be_unsafe =
        ["kernels/neon", "kernels/x86", "kernels/conformance/guard", "parallel", "engine/bytes", "daemon/systemd"];
    let may_be_async = ["transport/", "daemon/"];
    let mut violations = Vec::new();
    for (path, code) in sources() {
        let name = path.join("/");
        for (number, line) in code_lines(&code) {
            let words = |w: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == w);
            if words("unsafe") && !may_be_unsafe.iter().any(|p| name.starts_with(p)) {
                violations.push(format!("src/{name}.rs:{}: unsafe", number + 1));
            }
            if words("tokio") && !may_be_async.iter().any(|p| name.starts_with(p)) {
                violations.push(format!("src/{name}.rs:{}: tokio", number + 1));
            }
        }
    }
    report(&violations);
}

#[test]
fn no_file_is_longer_than_800_lines() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|(_, code)| code.lines().count() > 800)
        .map(|(path, code)| format!("src/{}.rs: {} lines", path.join("/"), code.lines().count()))
        .collect();
    report(&long);
}
