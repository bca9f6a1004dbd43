//! Writes a grammar in `llguidance`'s dialect of Lark.
//!
//! Every part of more than a class or a text gets a name of its own, for that dialect has few parentheses: `Tn` and `Rn`
//! for the rules, `Pn` and `pn` for parts of them; capitals are what a lexeme is made of.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::lexemes::{Kind, Part, Parts};
use super::parse::{Chars, Grammar};

pub(super) fn write(grammar: &Grammar) -> Option<String> {
    let mut parts = Parts::default();
    let recursive = !grammar.regular[grammar.root];
    let bodies: Vec<Option<Part>> = (0..grammar.rules.len())
        .map(|rule| {
            let wanted = recursive && !grammar.regular[rule];
            wanted.then(|| parts.build(grammar, &grammar.rules[rule], true))
        })
        .collect();
    if recursive {
        parts.cut(&bodies, grammar.root)?;
    }
    let start = if recursive { format!("r{}", grammar.root) } else { format!("T{}", grammar.root) };
    let mut writer =
        Writer { grammar, parts, out: format!("start: {start}\n"), terms: BTreeSet::new(), todo: Vec::new() };
    if !recursive {
        writer.todo.push(grammar.root);
        writer.terms.insert(grammar.root);
    }
    for (rule, body) in bodies.iter().enumerate() {
        if let Some(body) = body {
            let text = writer.body(*body, false);
            let _ = writeln!(writer.out, "r{rule}: {text}");
        }
    }
    while let Some(rule) = writer.todo.pop() {
        let body = writer.parts.build(grammar, &grammar.rules[rule], false);
        let text = writer.body(body, true);
        let _ = writeln!(writer.out, "T{rule}: {text}");
    }
    Some(writer.out)
}

struct Writer<'a> {
    grammar: &'a Grammar,
    parts: Parts,
    out: String,
    /// Regular rules that were named, and those of them that are still to be written.
    terms: BTreeSet<usize>,
    todo: Vec<usize>,
}

impl Writer<'_> {
    /// `part` as it stands after a name and a colon; `inside` a lexeme or not.
    fn body(&mut self, part: Part, inside: bool) -> String {
        let inside = inside || self.parts.lexeme[part];
        let atoms = |it: &mut Self, of: Vec<Part>, between: &str| {
            let atoms: Vec<String> = of.into_iter().map(|part| it.atom(part, inside)).collect();
            atoms.join(between)
        };
        match &self.parts.kinds[part] {
            Kind::Seq(inner) if !inner.is_empty() => atoms(self, inner.clone(), " "),
            Kind::Alt(inner) => atoms(self, inner.clone(), " | "),
            Kind::Repeat(inner, least, most) => {
                let (inner, least, most) = (*inner, *least, *most);
                let atom = self.atom(inner, inside);
                match (least, most) {
                    (0, None) => format!("{atom}*"),
                    (1, None) => format!("{atom}+"),
                    (0, Some(1)) => format!("{atom}?"),
                    (_, None) => format!("{atom}{{{least},}}"),
                    (_, Some(most)) => format!("{atom}{{{least},{most}}}"),
                }
            }
            _ => self.atom(part, inside),
        }
    }

    /// `part` as it stands within others.
    fn atom(&mut self, part: Part, inside: bool) -> String {
        let inside = inside || self.parts.lexeme[part];
        match &self.parts.kinds[part] {
            Kind::Chars(chars) => class(chars),
            Kind::Text(text) => quoted(text),
            Kind::Seq(inner) if inner.is_empty() => "\"\"".into(),
            Kind::Recursive(rule) => format!("r{rule}"),
            Kind::Regular(_, Some(body)) if !inside => self.atom(*body, false),
            Kind::Regular(rule, _) => {
                let rule = *rule;
                if self.terms.insert(rule) {
                    self.todo.push(rule);
                }
                debug_assert!(self.grammar.regular[rule]);
                format!("T{rule}")
            }
            Kind::Seq(_) | Kind::Alt(_) | Kind::Repeat(..) => {
                let name = format!("{}{part}", if inside { 'P' } else { 'p' });
                let body = self.body(part, inside);
                let _ = writeln!(self.out, "{name}: {body}");
                name
            }
        }
    }
}

fn class(chars: &Chars) -> String {
    let mut out = "/[".to_owned();
    for (first, last) in chars {
        let _ = write!(out, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(*first), u32::from(*last));
    }
    out + "]/"
}

/// As JSON has it, which Lark reads. Del may not stand in it as it is.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
