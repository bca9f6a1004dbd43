//! Where the lines of a chat come from: a person at a terminal, who edits them, or a program.

use std::io::{BufRead, BufReader, Read, Stdin};

use rustyline::error::ReadlineError;
use rustyline::history::{History, MemHistory};
use rustyline::{ColorMode, Config};

use super::super::super::error::Error;
use super::super::color::Paint;
use super::history::{self, Kept};

/// Longest line that is read of a program.
const MAX_LINE: u64 = 1 << 20;

const PROMPT: &str = "> ";

pub(super) enum Line {
    Text(String),
    /// Ctrl-C: what was typed is not meant.
    Interrupted,
    End,
}

/// A terminal, with line editing.
pub(super) struct Editor {
    editor: rustyline::Editor<(), MemHistory>,
    prompt: String,
    kept: Option<Kept>,
}

impl Editor {
    pub(super) fn new(paint: Paint, keep: bool) -> Result<Editor, Error> {
        let prompt = paint.bold(PROMPT);
        let color = if prompt == PROMPT { ColorMode::Disabled } else { ColorMode::Forced };
        let config = Config::builder().color_mode(color).history_ignore_space(true);
        let config = config.max_history_size(history::MAX_LINES).map_err(failed)?.build();
        let mut lines = MemHistory::with_config(&config);
        let kept = if keep { Kept::open() } else { None };
        for line in kept.iter().flat_map(Kept::read) {
            lines.add_owned(line).map_err(failed)?;
        }
        let mut editor = rustyline::Editor::with_history(config, lines).map_err(failed)?;
        // Without a helper the prompt has no style.
        editor.set_helper(Some(()));
        Ok(Editor { editor, prompt, kept })
    }

    pub(super) fn read(&mut self) -> Result<Line, Error> {
        match self.editor.readline(&(PROMPT, self.prompt.as_str())) {
            Ok(line) => {
                let new = self.editor.add_history_entry(line.as_str()).map_err(failed)?;
                if let Some(kept) = self.kept.as_ref().filter(|_| new)
                    && let Err(error) = kept.add(&line)
                {
                    eprintln!("emberd: {error}; lines are not kept from here on");
                    self.kept = None;
                }
                Ok(Line::Text(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(failed(error)),
        }
    }
}

fn failed(error: ReadlineError) -> Error {
    match error {
        ReadlineError::Io(error) => Error::System("cannot use the terminal", error),
        ReadlineError::Errno(error) => Error::System("cannot use the terminal", error.into()),
        other => Error::failed(format_args!("cannot use the terminal: {other}")),
    }
}

/// Standard input that is no terminal.
pub(super) struct Plain(BufReader<Stdin>);

impl Plain {
    pub(super) fn new() -> Plain {
        Plain(BufReader::new(std::io::stdin()))
    }

    pub(super) fn read(&mut self) -> Result<Line, Error> {
        let mut line = String::new();
        let read = self.0.by_ref().take(MAX_LINE).read_line(&mut line);
        match read.map_err(|error| Error::System("cannot read standard input", error))? {
            0 => Ok(Line::End),
            length if length as u64 == MAX_LINE && !line.ends_with('\n') => {
                Err(Error::Usage(format!("standard input: a line is longer than {MAX_LINE} bytes")))
            }
            _ => Ok(Line::Text(line)),
        }
    }
}
