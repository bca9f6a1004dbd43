//! Colours, where a person looks.

use anstream::AutoStream;
use anstream::stream::RawStream;
use clap::{Args, ColorChoice};

#[derive(Args)]
pub(super) struct Color {
    /// Colours: `auto` is on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

impl Color {
    /// How to paint what goes to `stream`.
    pub(super) fn paint(&self, stream: &impl RawStream) -> Paint {
        Paint(match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => AutoStream::choice(stream) != anstream::ColorChoice::Never,
        })
    }
}

/// Paints, or leaves as it is.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    #[cfg(test)]
    pub(super) const PLAIN: Paint = Paint(false);

    fn with(self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with(1, text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with(2, text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.with(31, text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.with(33, text)
    }
}
