//! GBNF as llama.cpp reads it.

use std::collections::HashMap;

use super::{GbnfError, MAX_DEPTH, MAX_GROUPS, MAX_REPEAT, MAX_RULES};

/// Characters from the first to the second of each pair, sorted and apart.
pub(super) type Chars = Vec<(char, char)>;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Chars(Chars),
    /// Not empty.
    Text(String),
    Rule(usize),
    /// One after the other; none of them is the empty text.
    Seq(Vec<Expr>),
    /// At least two.
    Alt(Vec<Expr>),
    Repeat(Box<Expr>, u32, Option<u32>),
}

/// Rules by number, of which every one that is named exists and matches some text.
pub(super) struct Grammar {
    pub(super) rules: Vec<Expr>,
    pub(super) root: usize,
    /// Rules from which no recursion can be reached; what recursed at its end only is a repetition by now.
    pub(super) regular: Vec<bool>,
}

/// Whether `c` may be in the name of a rule.
pub(super) fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

impl Grammar {
    pub(super) fn parse(text: &str) -> Result<Grammar, GbnfError> {
        let mut parser = Parser { text, at: 0, names: HashMap::new(), rules: Vec::new(), groups: 0 };
        parser.skip(true);
        while parser.peek().is_some() {
            parser.rule()?;
        }
        let Parser { names, rules, .. } = parser;
        let Some(root) = names.get("root").copied().filter(|&root| rules[root].body.is_some()) else {
            return Err(GbnfError::at(text, text.len(), "there is no rule root, with which every text begins"));
        };
        let at: Vec<usize> = rules.iter().map(|rule| rule.at).collect();
        let bodies = rules.into_iter().map(|rule| {
            let why = || format!("there is no rule {}", rule.name);
            rule.body.ok_or_else(|| GbnfError::at(text, rule.at, why()))
        });
        let rules = bodies.collect::<Result<Vec<_>, _>>()?;
        let depth: usize = rules.iter().map(Expr::depth).sum();
        if depth > MAX_DEPTH {
            let why = format!("expected rules of at most {MAX_DEPTH} parts inside each other, found {depth}");
            return Err(GbnfError::at(text, 0, why));
        }
        let productive = settle(&rules, |rule, known| rules[rule].all_known(known));
        if let Some(rule) = productive.iter().position(|productive| !productive) {
            return Err(GbnfError::at(text, at[rule], "no text can match this rule: it never comes to an end"));
        }
        let mut grammar = Grammar { rules, root, regular: Vec::new() };
        grammar.unroll();
        Ok(grammar)
    }

    /// Finds the regular rules, and makes repetitions of those that recurse at their end: `ws ::= ([ \t] ws)?`.
    fn unroll(&mut self) {
        let mut regular = vec![false; self.rules.len()];
        loop {
            let mut changed = false;
            for rule in 0..self.rules.len() {
                if regular[rule] {
                    continue;
                }
                let known = |other: usize| regular[other];
                if !self.rules[rule].names(&|other| !known(other) && other != rule) {
                    if self.rules[rule].names(&|other| other == rule) {
                        let Some((again, last)) = self.rules[rule].tail(rule) else { continue };
                        let again = Expr::repeat(Expr::alt(again), 0, None);
                        self.rules[rule] = Expr::seq(vec![again, Expr::alt(last)]);
                    }
                    regular[rule] = true;
                    changed = true;
                }
            }
            if !changed {
                self.regular = regular;
                return;
            }
        }
    }
}

/// The rules that `holds` says yes to, which may depend on those that it said yes to before.
fn settle(rules: &[Expr], holds: impl Fn(usize, &[bool]) -> bool) -> Vec<bool> {
    let mut known = vec![false; rules.len()];
    loop {
        let before = known.iter().filter(|known| **known).count();
        // Rules are mostly written before what they use.
        for rule in (0..rules.len()).rev() {
            known[rule] = known[rule] || holds(rule, &known);
        }
        if known.iter().filter(|known| **known).count() == before {
            return known;
        }
    }
}

impl Expr {
    pub(super) fn empty() -> Expr {
        Expr::Seq(Vec::new())
    }

    pub(super) fn seq(parts: Vec<Expr>) -> Expr {
        let mut flat: Vec<Expr> = Vec::new();
        for part in parts {
            match part {
                Expr::Seq(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match flat.pop() {
            Some(only) if flat.is_empty() => only,
            Some(last) => {
                flat.push(last);
                Expr::Seq(flat)
            }
            None => Expr::empty(),
        }
    }

    pub(super) fn alt(options: Vec<Expr>) -> Expr {
        let mut flat: Vec<Expr> = Vec::new();
        for option in options {
            match option {
                Expr::Alt(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match flat.pop() {
            Some(only) if flat.is_empty() => only,
            Some(last) => {
                flat.push(last);
                Expr::Alt(flat)
            }
            None => Expr::empty(),
        }
    }

    fn repeat(part: Expr, least: u32, most: Option<u32>) -> Expr {
        match (part, most) {
            (_, Some(0)) => Expr::empty(),
            (part, Some(1)) if least == 1 => part,
            (Expr::Seq(parts), _) if parts.is_empty() => Expr::empty(),
            (part, most) => Expr::Repeat(Box::new(part), least, most),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Expr::Chars(_) | Expr::Text(_) | Expr::Rule(_) => 1,
            Expr::Seq(parts) | Expr::Alt(parts) => 1 + parts.iter().map(Expr::depth).max().unwrap_or(0),
            Expr::Repeat(part, ..) => 1 + part.depth(),
        }
    }

    /// Whether it names a rule that `wanted` says yes to.
    pub(super) fn names(&self, wanted: &dyn Fn(usize) -> bool) -> bool {
        match self {
            Expr::Chars(_) | Expr::Text(_) => false,
            Expr::Rule(rule) => wanted(*rule),
            Expr::Seq(parts) | Expr::Alt(parts) => parts.iter().any(|part| part.names(wanted)),
            Expr::Repeat(part, ..) => part.names(wanted),
        }
    }

    /// Whether some text matches, by the rules that are known to match some.
    fn all_known(&self, known: &[bool]) -> bool {
        match self {
            Expr::Chars(_) | Expr::Text(_) => true,
            Expr::Rule(rule) => known[*rule],
            Expr::Seq(parts) => parts.iter().all(|part| part.all_known(known)),
            Expr::Alt(parts) => parts.iter().any(|part| part.all_known(known)),
            Expr::Repeat(part, least, _) => *least == 0 || part.all_known(known),
        }
    }

    /// What comes before `rule` where it stands at the end, and the ways to end without it; `None` where it stands
    /// elsewhere too.
    fn tail(&self, rule: usize) -> Option<(Vec<Expr>, Vec<Expr>)> {
        match self {
            Expr::Rule(other) if *other == rule => Some((vec![Expr::empty()], Vec::new())),
            one if !one.names(&|other| other == rule) => Some((Vec::new(), vec![one.clone()])),
            Expr::Alt(options) => {
                let (mut again, mut last) = (Vec::new(), Vec::new());
                for option in options {
                    let (more, ends) = option.tail(rule)?;
                    again.extend(more);
                    last.extend(ends);
                }
                Some((again, last))
            }
            Expr::Seq(parts) => {
                let (end, before) = parts.split_last()?;
                if before.iter().any(|part| part.names(&|other| other == rule)) {
                    return None;
                }
                let (again, last) = end.tail(rule)?;
                let after = |ends: Vec<Expr>| -> Vec<Expr> {
                    if ends.is_empty() { ends } else { vec![Expr::seq([before, &[Expr::alt(ends)]].concat())] }
                };
                Some((after(again), after(last)))
            }
            Expr::Repeat(part, 0, Some(1)) => {
                let (again, mut last) = part.tail(rule)?;
                last.push(Expr::empty());
                Some((again, last))
            }
            _ => None,
        }
    }
}

struct Named<'a> {
    name: &'a str,
    /// Where it is defined, or was first named.
    at: usize,
    body: Option<Expr>,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    names: HashMap<&'a str, usize>,
    rules: Vec<Named<'a>>,
    groups: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, GbnfError> {
        Err(GbnfError::at(self.text, self.at, what))
    }

    fn expected<T>(&self, what: &str) -> Result<T, GbnfError> {
        match self.peek() {
            Some(found) => self.error(format!("expected {what}, found {found:?}")),
            None => self.error(format!("expected {what}, found the end of the grammar")),
        }
    }

    /// Passes over spaces, comments and, where they mean nothing, ends of lines.
    fn skip(&mut self, lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => self.at += 1,
                Some('\r' | '\n') if lines => self.at += 1,
                Some('#') => self.at += self.rest().find(['\r', '\n']).unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn name(&mut self) -> &'a str {
        let rest = self.rest();
        let name = &rest[..rest.find(|c| !in_name(c)).unwrap_or(rest.len())];
        self.at += name.len();
        name
    }

    fn number_of(&mut self, name: &'a str, at: usize) -> Result<usize, GbnfError> {
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        if self.rules.len() == MAX_RULES {
            return Err(GbnfError::at(self.text, at, format!("expected at most {MAX_RULES} rules")));
        }
        self.names.insert(name, self.rules.len());
        self.rules.push(Named { name, at, body: None });
        Ok(self.rules.len() - 1)
    }

    fn rule(&mut self) -> Result<(), GbnfError> {
        let at = self.at;
        let name = self.name();
        if name.is_empty() {
            return self.expected("the name of a rule, of letters, digits, - and _");
        }
        self.skip(false);
        if !self.take("::=") {
            return self.expected("::= after the name of a rule");
        }
        self.skip(true);
        let number = self.number_of(name, at)?;
        if self.rules[number].body.is_some() {
            return Err(GbnfError::at(self.text, at, format!("rule {name} is there twice")));
        }
        let body = self.options(false)?;
        (self.rules[number].at, self.rules[number].body) = (at, Some(body));
        match self.peek() {
            None | Some('\r' | '\n') => {}
            Some(':') => return self.error("a rule begins on a line of its own"),
            _ => return self.expected("the end of the rule"),
        }
        self.skip(true);
        Ok(())
    }

    fn options(&mut self, group: bool) -> Result<Expr, GbnfError> {
        let mut options = vec![self.sequence(group)?];
        while self.take("|") {
            self.skip(true);
            options.push(self.sequence(group)?);
        }
        Ok(Expr::alt(options))
    }

    fn sequence(&mut self, group: bool) -> Result<Expr, GbnfError> {
        let mut parts: Vec<Expr> = Vec::new();
        // Whether the last part may be repeated.
        let mut fresh = false;
        loop {
            let at = self.at;
            let repeat = match self.peek() {
                Some('"') => {
                    parts.push(self.literal()?);
                    None
                }
                Some('[') => {
                    parts.push(self.class()?);
                    None
                }
                Some('.') => {
                    self.at += 1;
                    parts.push(Expr::Chars(vec![('\0', char::MAX)]));
                    None
                }
                Some('(') => {
                    parts.push(self.group()?);
                    None
                }
                Some(c) if in_name(c) => {
                    let name = self.name();
                    parts.push(Expr::Rule(self.number_of(name, at)?));
                    None
                }
                Some('*') => Some((0, None)),
                Some('+') => Some((1, None)),
                Some('?') => Some((0, Some(1))),
                Some('{') => Some(self.range(group)?),
                Some('<' | '!') => return self.error("tokens are not supported here: write their text in quotes"),
                _ => return Ok(Expr::seq(parts)),
            };
            if let Some((least, most)) = repeat {
                let last = parts.pop().filter(|_| fresh);
                let Some(last) = last else {
                    let why = "there is nothing before it to repeat; put what is repeated already in parentheses";
                    return Err(GbnfError::at(self.text, at, why));
                };
                self.at += usize::from(self.at == at);
                parts.push(Expr::repeat(last, least, most));
            }
            fresh = repeat.is_none();
            self.skip(group);
        }
    }

    fn group(&mut self) -> Result<Expr, GbnfError> {
        if self.groups == MAX_GROUPS {
            return self.error(format!("expected at most {MAX_GROUPS} groups inside each other"));
        }
        self.at += 1;
        self.groups += 1;
        self.skip(true);
        let inside = self.options(true)?;
        if !self.take(")") {
            return self.expected("the group's )");
        }
        self.groups -= 1;
        Ok(inside)
    }

    /// `{m}`, `{m,}` or `{m,n}`.
    fn range(&mut self, group: bool) -> Result<(u32, Option<u32>), GbnfError> {
        self.at += 1;
        self.skip(group);
        let least = self.integer()?;
        self.skip(group);
        let mut most = Some(least);
        if self.take(",") {
            self.skip(group);
            most = if self.peek() == Some('}') { None } else { Some(self.integer()?) };
            self.skip(group);
        }
        if most.is_some_and(|most| most < least) {
            return self.error("the second number of a repetition is less than the first");
        }
        if !self.take("}") {
            return self.expected("the repetition's }");
        }
        Ok((least, most))
    }

    fn integer(&mut self) -> Result<u32, GbnfError> {
        let rest = self.rest();
        let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
        match digits.parse() {
            Ok(number) if number <= MAX_REPEAT => {
                self.at += digits.len();
                Ok(number)
            }
            _ => self.expected(&format!("a number from 0 to {MAX_REPEAT}")),
        }
    }

    fn literal(&mut self) -> Result<Expr, GbnfError> {
        self.at += 1;
        let mut text = String::new();
        while !self.take("\"") {
            text.push(self.character("the text's \"")?);
        }
        Ok(if text.is_empty() { Expr::empty() } else { Expr::Text(text) })
    }

    fn class(&mut self) -> Result<Expr, GbnfError> {
        let begin = self.at;
        self.at += 1;
        let negated = self.take("^");
        let mut chars = Chars::new();
        while !self.take("]") {
            let (at, first) = (self.at, self.character("the class's ]")?);
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                last = self.character("the end of the range")?;
            }
            if last < first {
                return Err(GbnfError::at(self.text, at, format!("{first:?} comes after {last:?}")));
            }
            chars.push((first, last));
        }
        let chars = if negated { complement(&merged(chars)) } else { merged(chars) };
        if chars.is_empty() || chars == [('\0', char::MAX)] && negated {
            return Err(GbnfError::at(self.text, begin, "expected characters in the class, found none"));
        }
        Ok(Expr::Chars(chars))
    }

    /// One character of a text or class, whose end is still to come.
    fn character(&mut self, end: &str) -> Result<char, GbnfError> {
        let at = self.at;
        match self.next() {
            Some('\\') => {}
            Some(c) => return Ok(c),
            None => return self.expected(end),
        }
        let wrong = |what: &str| Err(GbnfError::at(self.text, at, what));
        let digits = match self.peek() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^')) => Ok(c),
            Some('x') => Err(2),
            Some('u') => Err(4),
            Some('U') => Err(8),
            _ => return wrong(r#"expected one of \n \r \t \\ \" \[ \] \- \^ \xNN \uNNNN \UNNNNNNNN"#),
        };
        match digits {
            Ok(c) => {
                self.at += 1;
                Ok(c)
            }
            Err(digits) => {
                let hex = self.rest().get(1..1 + digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
                let Some(code) = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()) else {
                    return wrong(&format!("expected {digits} hexadecimal digits"));
                };
                let Some(c) = char::from_u32(code) else { return wrong("this is the code of no character") };
                self.at += 1 + digits;
                Ok(c)
            }
        }
    }
}

fn merged(mut chars: Chars) -> Chars {
    chars.sort_unstable();
    let mut out = Chars::new();
    for (first, last) in chars {
        match out.last_mut() {
            Some((_, end)) if after(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

fn complement(chars: &Chars) -> Chars {
    let mut out = Chars::new();
    let mut next = Some('\0');
    for &(first, last) in chars {
        let gap = next.zip(before(first)).filter(|(from, to)| from <= to);
        out.extend(gap);
        next = after(last);
    }
    out.extend(next.map(|from| (from, char::MAX)));
    out
}

fn after(c: char) -> Option<char> {
    (c..=char::MAX).nth(1)
}

fn before(c: char) -> Option<char> {
    ('\0'..c).next_back()
}
