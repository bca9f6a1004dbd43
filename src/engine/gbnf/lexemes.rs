//! Which parts of a recursive grammar are lexemes.
//!
//! At first every part that is regular and as large as can be. Then the grammar is followed as an automaton of its
//! characters, which returns from a rule to whoever uses it, by pairs: two ways to read the same text whose lexemes began
//! and ended together so far. Where one way ends a lexeme at a character at which the other goes on in one, `llguidance`
//! would lose the first; the lexeme of the second is taken apart, and all begins anew. A lexeme of one character cannot go
//! on, so this comes to an end; and an automaton that allows more than the grammar does only takes apart too much.

use std::collections::{BTreeSet, HashSet};

use super::parse::{Chars, Expr, Grammar};

/// Parts with all regular rules written out.
const MAX_PARTS: usize = 50_000;

/// Steps of looking for ways that end apart, each a comparison of two classes.
const MAX_STEPS: usize = 2_000_000;

pub(super) type Part = usize;

pub(super) enum Kind {
    Chars(Chars),
    Text(String),
    Seq(Vec<Part>),
    Alt(Vec<Part>),
    Repeat(Part, u32, Option<u32>),
    /// A regular rule, and its body, where that was written out.
    Regular(usize, Option<Part>),
    Recursive(usize),
}

/// The bodies of rules.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) kinds: Vec<Kind>,
    /// Whether it is a lexeme, and all below it parts of that.
    pub(super) lexeme: Vec<bool>,
    regular: Vec<bool>,
}

impl Parts {
    fn add(&mut self, kind: Kind, regular: bool) -> Part {
        self.kinds.push(kind);
        self.lexeme.push(false);
        self.regular.push(regular);
        self.kinds.len() - 1
    }

    /// Adds `expr`; `within` writes regular rules out, where there is room.
    pub(super) fn build(&mut self, grammar: &Grammar, expr: &Expr, within: bool) -> Part {
        let all = |parts: &Parts, of: &[Part]| of.iter().all(|part| parts.regular[*part]);
        match expr {
            Expr::Chars(chars) => self.add(Kind::Chars(chars.clone()), true),
            Expr::Text(text) => self.add(Kind::Text(text.clone()), true),
            Expr::Rule(rule) if grammar.regular[*rule] => {
                let room = within && self.kinds.len() < MAX_PARTS;
                let body = room.then(|| self.build(grammar, &grammar.rules[*rule], true));
                self.add(Kind::Regular(*rule, body), true)
            }
            Expr::Rule(rule) => self.add(Kind::Recursive(*rule), false),
            Expr::Seq(inner) => {
                let parts: Vec<Part> = inner.iter().map(|part| self.build(grammar, part, within)).collect();
                if all(self, &parts) {
                    return self.add(Kind::Seq(parts), true);
                }
                // Neighbours that are regular become one part.
                let mut joined: Vec<Part> = Vec::new();
                let runs = parts.chunk_by(|a, b| self.regular[*a] && self.regular[*b]).map(<[Part]>::to_vec);
                for run in runs.collect::<Vec<_>>() {
                    joined.extend(if run.len() > 1 { vec![self.add(Kind::Seq(run), true)] } else { run });
                }
                self.add(Kind::Seq(joined), false)
            }
            Expr::Alt(inner) => {
                let parts: Vec<Part> = inner.iter().map(|part| self.build(grammar, part, within)).collect();
                if all(self, &parts) {
                    return self.add(Kind::Alt(parts), true);
                }
                let (regular, mut rest): (Vec<Part>, Vec<Part>) = parts.iter().partition(|part| self.regular[**part]);
                rest.extend(match regular.len() {
                    0 | 1 => regular,
                    _ => vec![self.add(Kind::Alt(regular), true)],
                });
                self.add(Kind::Alt(rest), false)
            }
            Expr::Repeat(inner, least, most) => {
                let part = self.build(grammar, inner, within);
                self.add(Kind::Repeat(part, *least, *most), self.regular[part])
            }
        }
    }

    /// Finds the lexemes of rules with these bodies, each `None` where the rule is regular.
    ///
    /// Nothing where a grammar is too large to be written out.
    pub(super) fn cut(&mut self, bodies: &[Option<Part>], root: usize) -> Option<()> {
        if self.kinds.len() >= MAX_PARTS {
            return None;
        }
        for body in bodies.iter().flatten() {
            self.mark(*body);
        }
        let mut steps = 0;
        loop {
            // Where looking costs too much, nothing but single characters is sure.
            let apart = Automaton::new(self, bodies).ends_apart(root, &mut steps).unwrap_or_else(|| {
                let long = |part: &Part| self.lexeme[*part] && !matches!(self.kinds[*part], Kind::Chars(_));
                (0..self.kinds.len()).filter(long).collect()
            });
            if apart.is_empty() {
                return Some(());
            }
            for part in apart {
                self.take_apart(part);
            }
        }
    }

    fn below(&self, part: Part) -> Vec<Part> {
        match &self.kinds[part] {
            Kind::Seq(parts) | Kind::Alt(parts) => parts.clone(),
            Kind::Repeat(inner, ..) | Kind::Regular(_, Some(inner)) => vec![*inner],
            Kind::Chars(_) | Kind::Text(_) | Kind::Regular(_, None) | Kind::Recursive(_) => Vec::new(),
        }
    }

    fn mark(&mut self, part: Part) {
        // The empty text is no lexeme.
        let empty = matches!(&self.kinds[part], Kind::Seq(parts) if parts.is_empty());
        if self.regular[part] && !empty {
            self.lexeme[part] = true;
        } else {
            self.below(part).into_iter().for_each(|inner| self.mark(inner));
        }
    }

    /// Makes lexemes of what is below a lexeme.
    fn take_apart(&mut self, part: Part) {
        self.lexeme[part] = false;
        if let Kind::Text(text) = &self.kinds[part] {
            let chars: Vec<char> = text.chars().collect();
            let letters = chars.into_iter().map(|c| self.add(Kind::Chars(vec![(c, c)]), true)).collect();
            self.kinds[part] = Kind::Seq(letters);
        }
        let inner = self.below(part);
        if let (Kind::Regular(..), [body]) = (&self.kinds[part], inner.as_slice()) {
            // A character cannot be taken apart.
            if matches!(self.kinds[*body], Kind::Chars(_)) {
                self.lexeme[*body] = true;
            } else {
                self.take_apart(*body);
            }
            return;
        }
        inner.into_iter().for_each(|inner| self.mark(inner));
    }
}

type State = usize;

/// A step without a character, and whether it ends a lexeme.
struct Edge(State, bool);

/// A step by a character of a class.
struct Step {
    chars: Chars,
    to: State,
    lexeme: Part,
}

struct Automaton<'a> {
    parts: &'a Parts,
    edges: Vec<Vec<Edge>>,
    steps: Vec<Option<Step>>,
    /// Begin and end of each rule.
    rules: Vec<Option<(State, State)>>,
}

impl<'a> Automaton<'a> {
    fn new(parts: &'a Parts, bodies: &[Option<Part>]) -> Automaton<'a> {
        let mut it = Automaton { parts, edges: Vec::new(), steps: Vec::new(), rules: Vec::new() };
        it.rules = bodies.iter().map(|body| body.map(|_| (it.state(), it.state()))).collect();
        for (body, ends) in bodies.iter().zip(it.rules.clone()) {
            if let (Some(body), Some((from, to))) = (body, ends) {
                it.lay(*body, from, to, None);
            }
        }
        it
    }

    fn state(&mut self) -> State {
        self.edges.push(Vec::new());
        self.steps.push(None);
        self.edges.len() - 1
    }

    fn edge(&mut self, from: State, to: State) {
        self.edges[from].push(Edge(to, false));
    }

    fn step(&mut self, from: State, chars: Chars, to: State, lexeme: Part) {
        let at = self.state();
        self.edge(from, at);
        self.steps[at] = Some(Step { chars, to, lexeme });
    }

    /// Lays `part` between two states; `lexeme` is what it is in.
    fn lay(&mut self, part: Part, from: State, to: State, lexeme: Option<Part>) {
        if lexeme.is_none() && self.parts.lexeme[part] {
            let end = self.state();
            self.edges[end].push(Edge(to, true));
            return self.lay(part, from, end, Some(part));
        }
        let parts = self.parts;
        match &parts.kinds[part] {
            Kind::Chars(chars) => self.step(from, chars.clone(), to, lexeme.unwrap_or(part)),
            Kind::Text(text) => {
                let mut at = from;
                for c in text.chars() {
                    let next = self.state();
                    self.step(at, vec![(c, c)], next, lexeme.unwrap_or(part));
                    at = next;
                }
                self.edge(at, to);
            }
            Kind::Seq(inner) => {
                let mut at = from;
                for part in inner {
                    let next = self.state();
                    self.lay(*part, at, next, lexeme);
                    at = next;
                }
                self.edge(at, to);
            }
            Kind::Alt(inner) => inner.iter().for_each(|part| self.lay(*part, from, to, lexeme)),
            Kind::Repeat(inner, least, most) => {
                let (begin, end) = (self.state(), self.state());
                self.edge(from, begin);
                self.lay(*inner, begin, end, lexeme);
                self.edge(end, to);
                if *least == 0 {
                    self.edge(from, to);
                }
                if *most != Some(1) {
                    self.edge(end, begin);
                }
            }
            Kind::Regular(_, body) => {
                if let Some(body) = body {
                    self.lay(*body, from, to, lexeme);
                }
            }
            Kind::Recursive(rule) => {
                if let Some((begin, end)) = self.rules[*rule] {
                    self.edge(from, begin);
                    self.edge(end, to);
                }
            }
        }
    }

    /// The characters that may come after `from`, and whether a lexeme ends before each.
    fn next(&self, from: State) -> Vec<(State, bool)> {
        let (mut seen, mut todo, mut found) = (HashSet::from([(from, false)]), vec![(from, false)], Vec::new());
        while let Some((state, ended)) = todo.pop() {
            if self.steps[state].is_some() {
                found.push((state, ended));
            }
            for Edge(to, ends) in &self.edges[state] {
                if seen.insert((*to, ended || *ends)) {
                    todo.push((*to, ended || *ends));
                }
            }
        }
        found
    }

    /// The lexemes that go on where another way to read the same text ends one; `None` when that is too much work.
    fn ends_apart(&self, root: usize, steps: &mut usize) -> Option<BTreeSet<Part>> {
        let mut next: Vec<Option<Vec<(State, bool)>>> = (0..self.edges.len()).map(|_| None).collect();
        let mut after = |state: State| next[state].get_or_insert_with(|| self.next(state)).clone();
        let start = self.rules[root]?.0;
        let (mut apart, mut seen, mut todo) = (BTreeSet::new(), HashSet::new(), vec![(start, start)]);
        while let Some((one, other)) = todo.pop() {
            let (ones, others) = (after(one), after(other));
            *steps += ones.len() * others.len();
            if *steps > MAX_STEPS {
                return None;
            }
            for (one, one_ended) in &ones {
                for (other, other_ended) in &others {
                    let (Some(a), Some(b)) = (&self.steps[*one], &self.steps[*other]) else { continue };
                    if !meet(&a.chars, &b.chars) {
                        continue;
                    }
                    if one_ended != other_ended {
                        apart.insert(if *one_ended { b.lexeme } else { a.lexeme });
                    } else if seen.insert((a.to.min(b.to), a.to.max(b.to))) {
                        todo.push((a.to, b.to));
                    }
                }
            }
        }
        Some(apart)
    }
}

/// Whether two classes have a character in common.
fn meet(a: &Chars, b: &Chars) -> bool {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some((a_first, a_last)), Some((b_first, b_last))) = (a.peek(), b.peek()) {
        if a_first <= b_last && b_first <= a_last {
            return true;
        }
        if a_last < b_last {
            a.next();
        } else {
            b.next();
        }
    }
    false
}
