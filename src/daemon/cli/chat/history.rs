//! The lines that were typed, in a file of their owner.
//!
//! Every line replaces the file by one with that line at its end: several chats at once lose none of what the others wrote before,
//! and the bounds hold at any time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::super::error::Error;

/// Most lines that are kept.
pub(super) const MAX_LINES: usize = 1000;

/// Most bytes that are kept; of longer lines, none.
const MAX_BYTES: usize = 256 << 10;

/// A history file.
pub(super) struct Kept(PathBuf);

impl Kept {
    /// The file of this user; `None` when it is not known where that would be.
    pub(super) fn open() -> Option<Kept> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
        Some(Kept(state.join("emberd/chat_history")))
    }

    /// Its lines, the oldest first; none when it cannot be read.
    pub(super) fn read(&self) -> Vec<String> {
        let mut bytes = Vec::new();
        // One that somebody else made may be of any length.
        let read = File::open(&self.0).and_then(|file| file.take(2 * MAX_BYTES as u64).read_to_end(&mut bytes));
        if read.is_err() {
            return Vec::new();
        }
        String::from_utf8_lossy(&bytes).lines().map(unescaped).collect()
    }

    /// Keeps `line` after the others.
    pub(super) fn add(&self, line: &str) -> Result<(), Error> {
        let mut lines = self.read();
        lines.push(line.to_owned());
        self.write(&bounded(&lines)).map_err(|error| Error::failed(format_args!("{}: {error}", self.0.display())))
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let dir = self.0.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let new = dir.join(format!("chat_history.{}", std::process::id()));
        // Left behind by a chat of the same number that was killed.
        let _ = fs::remove_file(&new);
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let written =
            written.and_then(|mut file| file.write_all(text.as_bytes())).and_then(|()| fs::rename(&new, &self.0));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// The last of `lines` that are within the bounds, as the file has them.
fn bounded(lines: &[String]) -> String {
    let mut room = MAX_BYTES;
    let fits = |line: &String| {
        room = room.saturating_sub(line.len() + 1);
        room > 0
    };
    let lines: Vec<String> = lines.iter().rev().take(MAX_LINES).map(|line| escaped(line)).take_while(fits).collect();
    lines.iter().rev().fold(String::new(), |text, line| text + line + "\n")
}

/// A line may have been pasted with line ends in it.
fn escaped(line: &str) -> String {
    line.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

fn unescaped(line: &str) -> String {
    let mut characters = line.chars();
    let mut text = String::new();
    while let Some(character) = characters.next() {
        text.push(match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            (other, _) => other,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn lines_come_back_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept(dir.path().join("state/emberd/chat_history"));
        assert!(kept.read().is_empty());
        let lines = ["plain", "two\nlines\\n\r", "über"];
        lines.iter().for_each(|line| kept.add(line).unwrap());
        assert_eq!(kept.read(), lines);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&kept.0), mode(kept.0.parent().unwrap())), (0o600, 0o700));
        // A file that others could read does not stay so.
        fs::set_permissions(&kept.0, PermissionsExt::from_mode(0o644)).unwrap();
        kept.add("more").unwrap();
        assert_eq!((mode(&kept.0), kept.read().len()), (0o600, 4));
        assert_eq!(fs::read_dir(kept.0.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let many: Vec<String> = (0..MAX_LINES + 5).map(|number| number.to_string()).collect();
        let text = bounded(&many);
        assert_eq!((text.lines().count(), text.lines().next()), (MAX_LINES, Some("5")));
        let long: Vec<String> = (0..10).map(|number| number.to_string().repeat(100 << 10)).collect();
        let text = bounded(&long);
        assert!(text.len() <= MAX_BYTES && text.lines().count() == 2 && text.ends_with("9\n"));
        assert_eq!(bounded(&["x".repeat(MAX_BYTES)]), "");
    }
}
