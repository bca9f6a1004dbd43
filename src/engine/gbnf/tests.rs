//! What a translation accepts, asked of `llguidance` itself, one byte a token.

use std::time::{Duration, Instant};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use llguidance::{Matcher, ParserFactory};

use super::parse::{Expr, Grammar};
use super::{is_gbnf, to_lark};

struct Judge(ParserFactory);

impl Judge {
    fn new() -> Judge {
        let words = ApproximateTokEnv::single_byte_env();
        let mut factory = ParserFactory::new(&words, InferenceCapabilities::default(), &[]).expect("factory");
        factory.quiet();
        Judge(factory)
    }

    fn of(&self, grammar: &str) -> Matcher {
        let lark = to_lark(grammar).unwrap_or_else(|error| panic!("{grammar}\n{error}"));
        let parser = self.0.create_parser(TopLevelGrammar::from_lark(lark.clone()));
        Matcher::new(Ok(parser.unwrap_or_else(|error| panic!("{grammar}\n{lark}\n{error}"))))
    }
}

trait Accepts {
    fn accepts(&self, text: &str) -> bool;
}

impl Accepts for Matcher {
    fn accepts(&self, text: &str) -> bool {
        let mut matcher = self.deep_clone();
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        // What has ended takes no more tokens, and says so by an error.
        matcher.validate_tokens(&tokens).is_ok_and(|valid| valid == tokens.len())
            && matcher.consume_tokens(&tokens).is_ok()
            && (matcher.is_stopped() || matcher.is_accepting().expect("bounded"))
    }
}

const JSON: &str = r##"
# Values, each followed by its space.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
    string ":" ws value          # the first member
    ("," ws string ":" ws value)*
)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws     ::= ([ \t\n] ws)?
"##;

const SUMS: &str = "root ::= (sum \"=\" ws number \"\\n\")+\n\
    sum ::= product ([-+] ws product)*\nproduct ::= factor ([*/] ws factor)*\n\
    factor ::= number | [a-z] [a-z0-9_]* ws | \"(\" ws sum \")\" ws\nnumber ::= [0-9]+ ws\nws ::= [ \\t]*\n";

const CHESS: &str = "root ::= (turn \"\\n\"){1,3}\nturn ::= [1-9] [0-9]? \". \" move (\" \" move)?\n\
    move ::= (pawn | piece | \"O-O\" \"-O\"?) [+#]?\n\
    piece ::= [NBRQK] [a-h]? [1-8]? \"x\"? [a-h] [1-8]\npawn ::= ([a-h] \"x\")? [a-h] [1-8] (\"=\" [NBRQ])?\n";

const LIST: &str = "root ::= item+\nitem ::= \"- \" [^\\n\\u2028]+ \"\\n\" |\n  \"* \" .{3} \"\\n\"\n";

#[test]
fn grammars_of_the_usual_kinds_accept_what_they_should() {
    let judge = Judge::new();
    let cases: [(&str, &[&str], &[&str]); 12] = [
        (
            JSON,
            &["{}", r#"{ "a": [1, -2.5e+3, true], "b\u00e9" : {"c":null} }"#, "{\"ä\":\"\\n🦀\"}\n"],
            &["", "[]", "{\"a\"}", "{\"a\":01}", "{\"a\":\"\u{7f}\"}", r#"{"a":1,}"#],
        ),
        (SUMS, &["1=1\n", "(a + 2)*x_1 / 3 = 4\n2=2\n"], &["1=1", "()=1\n", "1+=2\n", "(1=1\n"]),
        (CHESS, &["1. e4 e5\n2. Nf3\n", "12. O-O-O exd8=Q+\n"], &["1. e9\n", "1. e4  e5\n", "0. e4\n"]),
        (LIST, &["- ä b\n", "* 🦀\n\n\n- x\n"], &["- \n", "* ab\n", "-x\n", "- a\u{2028}\n"]),
        // A lexeme that is as long as it can be would be too long in each of these.
        (r#"root ::= "a" "bc" | "ab" "d" | "(" root ")""#, &["abc", "abd", "((abc))"], &["ab", "abcd", "(abc"]),
        ("root ::= [a-z]* \"z\" | \"(\" root \")\" [a-z]*", &["z", "azz", "(z)", "((azz)z)q"], &["", "(a)", "azb"]),
        ("root ::= w root? w\nw ::= \"a\"+", &["aa", "aaa", "aaaaaa"], &["", "a", "ab"]),
        ("root ::= \"a\" root \"a\" | \"b\" | [ab] \"c\"", &["b", "aba", "bc", "ac", "aaca"], &["ab", "abaa", "a"]),
        (
            "root ::= (\"\" | \"a\"{0} | \"b\"{2} | \"c\"{1,} | \"d\"{0,2})",
            &["", "bb", "ccc", "dd"],
            &["a", "b", "ddd"],
        ),
        (r#"root ::= [\x41\-\]^\U0001F980-] "\u00e9\"" "/\t""#, &["Aé\"/\t", "-é\"/\t", "🦀é\"/\t"], &["Bé\"/\t", "A"]),
        (r"root ::= [^\U0010FFFF]", &["a", "\u{10fffe}"], &["\u{10ffff}", ""]),
        (r"root ::= [a-\U0010FFFFb]", &["b", "\u{10ffff}"], &["A"]),
    ];
    for (grammar, good, bad) in cases {
        assert!(is_gbnf(grammar), "{grammar}");
        let matcher = judge.of(grammar);
        good.iter().for_each(|text| assert!(matcher.accepts(text), "{grammar}\n{text:?} is refused"));
        bad.iter().for_each(|text| assert!(!matcher.accepts(text), "{grammar}\n{text:?} is taken"));
    }
}

#[test]
fn which_of_the_two_languages_it_is() {
    for text in ["root ::= x", "\n\t# : comment\r\n a-B_1\t::=\n\"x\"", "x::=y"] {
        assert!(is_gbnf(text), "{text:?}");
    }
    for text in ["", "start: \"::=\"", "%llguidance {}\nx ::= y", "// x\nroot ::= x", "start::_: x", "::= x"] {
        assert!(!is_gbnf(text), "{text:?}");
    }
}

#[test]
fn errors_say_where_and_what() {
    for (grammar, error) in [
        ("", "line 1, column 1: there is no rule root"),
        ("root ::= a\na ::= \"x", "line 2, column 9: expected the text's \""),
        ("root ::= [a-", "line 1, column 13: expected the end of the range"),
        ("root ::= ä", "line 1, column 10: expected the end of the rule, found 'ä'"),
        ("root ::= \"ä\" nobody", "line 1, column 14: there is no rule nobody"),
        ("root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: rule root is there twice"),
        ("root ::= b ::= \"a\"", "line 1, column 12: a rule begins on a line of its own"),
        ("root := \"a\"", "line 1, column 6: expected ::="),
        ("root ::= * \"a\"", "line 1, column 10: there is nothing before it to repeat"),
        ("root ::= \"a\"+*", "line 1, column 14: there is nothing before it to repeat"),
        ("root ::= \"a\"{3,2}", "the second number of a repetition is less"),
        ("root ::= \"a\"{10001}", "line 1, column 14: expected a number from 0 to 10000"),
        ("root ::= [z-a]", "line 1, column 11: 'z' comes after 'a'"),
        ("root ::= []", "line 1, column 10: expected characters in the class"),
        ("root ::= [^\\x00-\\U0010FFFF]", "line 1, column 10: expected characters in the class"),
        ("root ::= \"\\q\"", "line 1, column 11: expected one of"),
        ("root ::= \"\\ud800\"", "the code of no character"),
        ("root ::= \"\\x1g\"", "expected 2 hexadecimal digits"),
        ("root ::= (\"a\"\n\"b\"", "line 2, column 4: expected the group's ), found the end"),
        ("root ::= <think>", "tokens are not supported"),
        ("root ::= \"a\" x\nx ::= \"b\" x", "line 1, column 1: no text can match this rule"),
        ("root ::= \"a\" | x\nx ::= \"b\" x", "line 2, column 1: no text can match this rule"),
    ] {
        let found = to_lark(grammar).expect_err(grammar).to_string();
        assert!(found.contains(error), "{grammar}: {found}");
    }
}

/// A grammar of rules that may recurse anywhere, over a, b and c.
fn random_grammar(rng: &mut fastrand::Rng) -> String {
    fn part(rng: &mut fastrand::Rng, rules: usize, depth: usize) -> String {
        let atom = match rng.u8(..if depth == 0 { 5 } else { 7 }) {
            0 | 1 => ["\"a\"", "\"ab\"", "\"ba\"", "\"c\"", "\"abc\"", "\"\""][rng.usize(..6)].to_owned(),
            2 => ["[ab]", "[^a]", "[b-c]", "[^\\x00-a]", "."][rng.usize(..5)].to_owned(),
            3 | 4 => format!("r{}", rng.usize(..rules)),
            _ => format!("({})", options(rng, rules, depth - 1)),
        };
        atom + ["", "", "", "", "*", "+", "?", "{2}", "{1,2}", "{0,2}", "{2,}"][rng.usize(..11)]
    }
    fn options(rng: &mut fastrand::Rng, rules: usize, depth: usize) -> String {
        let count = rng.usize(1..4);
        let one = |rng: &mut fastrand::Rng| {
            let parts: Vec<String> = (0..rng.usize(1..4)).map(|_| part(rng, rules, depth)).collect();
            parts.join(" ")
        };
        (0..count).map(|_| one(rng)).collect::<Vec<_>>().join(" | ")
    }
    let rules = rng.usize(1..4);
    let mut text = "root ::= r0\n".to_owned();
    (0..rules).for_each(|rule| text += &format!("r{rule} ::= {}\n", options(rng, rules, 2)));
    text
}

/// Where texts of each rule that begin at each place may end, found by trying until nothing is new.
fn matches(grammar: &Grammar, text: &[char]) -> bool {
    type Ends = Vec<Vec<u32>>;
    fn ends(expr: &Expr, at: usize, text: &[char], known: &Ends) -> u32 {
        let follow = |from: u32, expr: &Expr| {
            let places = (0..=text.len()).filter(|place| from & (1 << place) != 0);
            places.fold(0, |all, place| all | ends(expr, place, text, known))
        };
        match expr {
            Expr::Chars(chars) => match text.get(at) {
                Some(c) if chars.iter().any(|(first, last)| (first..=last).contains(&c)) => 1 << (at + 1),
                _ => 0,
            },
            Expr::Text(wanted) => {
                let wanted: Vec<char> = wanted.chars().collect();
                if text[at..].starts_with(&wanted) { 1 << (at + wanted.len()) } else { 0 }
            }
            Expr::Rule(rule) => known[*rule][at],
            Expr::Seq(parts) => parts.iter().fold(1 << at, &follow),
            Expr::Alt(parts) => parts.iter().fold(0, |all, part| all | ends(part, at, text, known)),
            Expr::Repeat(part, least, most) => {
                let (mut from, mut all) = (1_u32 << at, 0);
                for round in 0..=most.unwrap_or(least + text.len() as u32) {
                    all |= if round >= *least { from } else { 0 };
                    from = follow(from, part);
                }
                all
            }
        }
    }
    let mut known: Ends = vec![vec![0; text.len() + 1]; grammar.rules.len()];
    loop {
        let before = known.clone();
        for (rule, body) in grammar.rules.iter().enumerate() {
            (0..=text.len()).for_each(|at| known[rule][at] |= ends(body, at, text, &known));
        }
        if known == before {
            return known[grammar.root][0] & (1 << text.len()) != 0;
        }
    }
}

#[test]
fn random_grammars_accept_what_a_direct_reading_does() {
    let (judge, mut rng) = (Judge::new(), fastrand::Rng::with_seed(7));
    let texts: Vec<Vec<char>> = (0..=6_u32)
        .flat_map(|length| (0..3_usize.pow(length)).map(move |n| (length, n)))
        .map(|(length, n)| (0..length).map(|at| ['a', 'b', 'c'][n / 3_usize.pow(at) % 3]).collect())
        .filter(|text: &Vec<char>| text.len() < 5 || fastrand::Rng::with_seed(text.len() as u64).bool())
        .collect();
    let (mut checked, mut taken, mut recursive) = (0, 0, 0);
    while checked < if cfg!(target_arch = "x86_64") { 20 } else { 4 } {
        let written = random_grammar(&mut rng);
        // Some have rules that nothing matches.
        let Ok(grammar) = Grammar::parse(&written) else { continue };
        checked += 1;
        recursive += usize::from(!grammar.regular[grammar.root]);
        let matcher = judge.of(&written);
        for text in &texts {
            let wanted = matches(&grammar, text);
            let text: String = text.iter().collect();
            assert_eq!(matcher.accepts(&text), wanted, "{written}{text:?}\n{}", to_lark(&written).expect("was"));
            taken += usize::from(wanted);
        }
    }
    println!("{checked} grammars, {recursive} of them recursive; {taken} texts taken");
    assert!(recursive * 4 > checked && taken > checked);
}

#[test]
fn hostile_grammars_are_refused_or_soon_done() {
    let judge = Judge::new();
    let chain: String = (0..1900).map(|n| format!("r{n} ::= \"a\" r{}\n", n + 1)).collect();
    let twice: String = (0..40).map(|n| format!("r{n} ::= r{0} r{0} | \"x\" root \"y\"\n", n + 1)).collect();
    let double: String = (0..40).map(|n| format!("r{n} ::= r{0} r{0}\n", n + 1)).collect();
    let words: String = (0..3000).map(|n| format!(" | \"w{n}\" root")).collect();
    let grammars = [
        format!("root ::= {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("root ::= {}", "(((\"a\"{9999}){9999}){9999}){9999}"),
        format!("root ::= \"a\"{}", "?".repeat(30_000)),
        format!("root ::= {}", "\"a\"? ".repeat(10_000)),
        format!("root ::= {}", "[a-z]* ".repeat(2_000)),
        format!("root ::= r0 | \"b\" root \"c\"\n{chain}r1900 ::= \"b\"\n"),
        format!("root ::= r0\n{twice}r40 ::= \"a\"\n"),
        format!("root ::= r0 | \"b\" root \"c\"\n{double}r40 ::= \"a\"\n"),
        format!("root ::= r0\n{double}r40 ::= \"a\"\n"),
        format!("root ::= \"a\"{words}"),
        "root ::= root root root | \"a\" | \"\"".to_owned(),
        "root ::= root".to_owned(),
        (0..5000).map(|n| format!("r{n} ::= \"a\"\n")).collect(),
        "(".repeat(1 << 20),
        "root ::= \"".to_owned() + &"a".repeat(1 << 20),
    ];
    // As much stack as the engine's thread has.
    let judged = std::thread::Builder::new().stack_size(crate::engine::template::STACK_BYTES).spawn(move || {
        for grammar in &grammars {
            let begun = Instant::now();
            let head: String = grammar.chars().take(60).collect();
            let lark = to_lark(grammar);
            let said = lark.as_ref().map_or_else(ToString::to_string, |lark| format!("{} bytes", lark.len()));
            let translated = begun.elapsed();
            let made = lark.ok().filter(|_| grammar.len() <= crate::engine::grammar::MAX_BYTES);
            if let Some(mut matcher) =
                made.map(|lark| Matcher::new(judge.0.create_parser(TopLevelGrammar::from_lark(lark))))
            {
                let _ = matcher.compute_mask();
            }
            println!("{head:?}: {said} in {translated:?}, with its first step {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(30), "{head:?}");
        }
    });
    judged.expect("thread").join().expect("no panic");
}
