//! Answers of a wanted form from a model that says anything: whatever the logits are, what comes out has the form.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use emberd::engine::grammar::{Format, Grammars};
use emberd::engine::sampler::{Sampler, SamplingParams};
use emberd::engine::stream::{Delta, TextStream};
use emberd::engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::shared;

const EOS: [u32; 2] = [1, 106];

/// The real vocabulary where it is there; the bundled model's, with the same ids for control tokens, where the CPU is an
/// emulated one.
static GRAMMARS: LazyLock<(Arc<Tokenizer>, Grammars)> = LazyLock::new(|| {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let real = if cfg!(target_arch = "aarch64") { None } else { shared::model_dir() };
    let tokenizer = Tokenizer::load(&real.unwrap_or(&home).join("tokenizer.json")).expect("tokenizer");
    let tokenizer = Arc::new(tokenizer);
    (Arc::clone(&tokenizer), Grammars::new(tokenizer, &EOS).expect("grammars"))
});

/// What was said, what the grammar cost, and how many tokens were forced.
struct Said {
    text: Vec<u8>,
    ended: bool,
    sampled: usize,
    forced: usize,
    longest: Duration,
    total: Duration,
}

/// Noise as logits. The ends are made a little likelier, or free text would have no end.
fn say(grammars: &Grammars, tokenizer: &Tokenizer, format: &Format, seed: u64) -> Said {
    let mut constraint = grammars.constraint(format).unwrap_or_else(|error| panic!("{format:?}: {error}"));
    let mut rng = fastrand::Rng::with_seed(seed);
    let params = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[]);
    let mut said =
        Said { text: Vec::new(), ended: false, sampled: 0, forced: 0, longest: Duration::ZERO, total: Duration::ZERO };
    let mut thinking = false;
    while said.sampled < 400 && !said.ended {
        let mut logits: Vec<f32> = (0..tokenizer.vocab_size()).map(|_| rng.f32() * 8.0).collect();
        let short = |id: u32| (1..=2).contains(&tokenizer.token_bytes(id).len());
        (0..logits.len()).filter(|id| short(*id as u32)).for_each(|id| logits[id] += 4.0);
        [1, 101, 106].iter().for_each(|id| logits[*id] += 6.0);
        let begun = Instant::now();
        constraint.prepare();
        let masked = begun.elapsed();
        constraint.apply(&mut logits).expect("bounded");
        let token = sampler.next(&mut logits);
        said.sampled += 1;
        if EOS.contains(&token) {
            assert!(!thinking, "an end within a thought");
            said.ended = true;
            break;
        }
        let begun = Instant::now();
        let forced = constraint.accept(token).expect("what the mask allows");
        said.longest = said.longest.max(masked + begun.elapsed());
        said.total += masked + begun.elapsed();
        thinking = token == 100 || (thinking && token != 101);
        said.forced += forced.len();
        for token in std::iter::once(token).chain(forced).filter(|_| !thinking) {
            said.text.extend_from_slice(tokenizer.token_bytes(token));
        }
        said.ended = constraint.ended();
    }
    said
}

/// A schema of the kinds that people use, not deeper than `depth`.
fn schema(rng: &mut fastrand::Rng, depth: usize) -> Value {
    match rng.u8(..if depth == 0 { 6 } else { 8 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "integer", "minimum": -5, "maximum": rng.i32(0..2000)}),
        2 => json!({"enum": ["open", "half \"open\"", 3, null]}),
        3 => json!({"type": "string", "maxLength": rng.u8(1..9)}),
        4 => json!({"type": "null"}),
        5 => json!({"type": "string", "pattern": "^[a-c]{2,3}$"}),
        6 => {
            let (least, items) = (rng.u8(0..3), schema(rng, depth - 1));
            json!({"type": "array", "items": items, "minItems": least, "maxItems": least + 2})
        }
        _ => {
            let names: Vec<String> = (0..rng.u8(1..4)).map(|n| format!("field {n}")).collect();
            let properties = names.iter().map(|name| (name.clone(), schema(rng, depth - 1)));
            let properties = Value::Object(properties.collect());
            json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
        }
    }
}

/// Whether `schema` accepts `value`: an own reading of the keywords that [`schema`] uses.
fn accepts(schema: &Value, value: &Value) -> bool {
    if let Some(allowed) = schema["enum"].as_array() {
        return allowed.contains(value);
    }
    let number = |name: &str| schema[name].as_i64();
    match schema["type"].as_str() {
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("integer") => {
            // -0 is an integer too.
            let n = value.as_i64().or((value.as_f64() == Some(0.0)).then_some(0));
            n.is_some() && number("minimum") <= n && n <= number("maximum")
        }
        Some("string") => value.as_str().is_some_and(|text| match number("maxLength") {
            Some(most) => text.chars().count() as i64 <= most,
            None => (2..=3).contains(&text.len()) && text.bytes().all(|byte| (b'a'..=b'c').contains(&byte)),
        }),
        Some("array") => value.as_array().is_some_and(|items| {
            let count = Some(items.len() as i64);
            number("minItems") <= count
                && count <= number("maxItems")
                && items.iter().all(|item| accepts(&schema["items"], item))
        }),
        _ => {
            let properties = schema["properties"].as_object().expect("object schema");
            value.as_object().is_some_and(|map| {
                map.len() == properties.len()
                    && properties.iter().all(|(name, schema)| map.get(name).is_some_and(|value| accepts(schema, value)))
            })
        }
    }
}

#[test]
fn noise_becomes_json_that_the_schema_accepts() {
    let (tokenizer, grammars) = &*GRAMMARS;
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut ended, mut sampled, mut forced) = (0, 0, 0);
    let (mut longest, mut total) = (Duration::ZERO, Duration::ZERO);
    let rounds = if cfg!(target_arch = "aarch64") { 8 } else { 30 };
    for seed in 0..rounds {
        let schema = schema(&mut rng, 3);
        let said = say(grammars, tokenizer, &Format::Schema(schema.clone()), seed);
        (sampled, forced) = (sampled + said.sampled, forced + said.forced);
        (longest, total) = (longest.max(said.longest), total + said.total);
        if !said.ended {
            continue;
        }
        ended += 1;
        let text = String::from_utf8(said.text).expect("UTF-8");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}: {text:?}: {error}"));
        assert!(accepts(&schema, &value), "{schema}: {text}");
    }
    println!(
        "{ended} of {rounds} ended; {sampled} tokens sampled, {forced} forced; a step {:?}, at most {longest:?}",
        total / sampled.max(1) as u32
    );
    assert!(ended * 10 >= rounds * 9, "{ended} of {rounds} came to an end");
    assert!(forced > 0, "nothing was forced");
}

#[test]
fn expressions_grammars_and_choices() {
    let (tokenizer, grammars) = &*GRAMMARS;
    for seed in 0..3 {
        let said = |format: Format| {
            let said = say(grammars, tokenizer, &format, seed);
            assert!(said.ended, "{format:?}");
            String::from_utf8(said.text).expect("UTF-8")
        };
        let time = said(Format::Regex("([01][0-9]|2[0-3]):[0-5][0-9]".into()));
        let parts: Vec<u32> = time.split(':').map(|part| part.parse().expect("number")).collect();
        assert!(time.len() == 5 && parts[0] < 24 && parts[1] < 60, "{time}");
        let choices = ["on (now)", "off", "\"a|b\""];
        assert!(choices.contains(&said(Format::Choice(choices.map(str::to_owned).to_vec())).as_str()));
        let sum = said(Format::Lark("start: NUMBER (\" + \" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/".into()));
        assert!(sum.split(" + ").all(|part| part.parse::<u8>().is_ok_and(|n| n < 100)), "{sum}");
    }
    let lists = "root ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\nvalue ::= root | \"-\"? [1-9] [0-9]{0,3} ws | \
                 \"\\\"\" [^\"\\\\\\x00-\\x1f]{0,12} \"\\\"\" ws\nws ::= \" \"?\n";
    let mut ended = 0;
    for seed in 0..10 {
        let said = say(grammars, tokenizer, &Format::Gbnf(lists.into()), seed);
        println!(
            "GBNF: {} tokens, {:?} each, at most {:?}",
            said.sampled,
            said.total / said.sampled as u32,
            said.longest
        );
        if said.ended {
            ended += 1;
            let list: Value = serde_json::from_slice(&said.text).expect("JSON");
            assert!(list.is_array(), "{list}");
        }
    }
    assert!(ended >= 5, "{ended} of 10 came to an end");
    let object = Format::Schema(json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
        "additionalProperties": false}));
    let said = String::from_utf8(say(grammars, tokenizer, &object, 1).text).expect("UTF-8");
    assert_eq!(said.replace(' ', ""), r#"{"a":1}"#);
}

/// What a stream makes of a call of one of `tools` that noise chose under the grammar, and its tokens, spelled. `wish` is added
/// to the logits by step and by the token's bytes.
fn called(tools: &[Value], seed: u64, wish: &dyn Fn(usize, &[u8]) -> f32) -> (Vec<Delta>, String) {
    let (tokenizer, grammars) = &*GRAMMARS;
    let mut constraint = grammars.constraint(&Format::Call(tools.to_vec())).expect("grammar");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut tokens = Vec::new();
    while !constraint.ended() && tokens.len() < 600 {
        let mut logits: Vec<f32> = (0..tokenizer.vocab_size()).map(|_| rng.f32() * 8.0).collect();
        // Texts and thoughts come to an end.
        [49, 52, 101].iter().for_each(|id| logits[*id] += 6.0);
        for (id, logit) in logits.iter_mut().enumerate() {
            *logit += wish(tokens.len(), tokenizer.token_bytes(id as u32));
        }
        constraint.apply(&mut logits).expect("bounded");
        let token = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("one") as u32;
        tokens.push(token);
        tokens.extend(constraint.accept(token).expect("what the mask allows"));
    }
    assert!(constraint.ended(), "{}", shared::spell_lossy(tokenizer, &tokens));
    let mut stream = TextStream::new(tokenizer, Vec::new()).expect("no stops").with_calls(tokenizer);
    let said = tokens.iter().flat_map(|token| stream.push(tokenizer, *token)).collect();
    (said, shared::spell_lossy(tokenizer, &tokens))
}

#[test]
fn a_required_call_can_be_read_and_has_the_declared_arguments() {
    let light = json!({"type": "function", "function": {"name": "set_light", "parameters": {"type": "object",
        "properties": {
            "room": {"type": "string", "enum": ["hall", "a \"quoted\" room"]},
            "level": {"type": "integer"},
            "note": {"type": "string"},
            "scene": {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]},
            "hours": {"type": "array", "items": {"type": "number"}},
            "odd, name": {"type": "null"},
            "tree": {"$ref": "#/$defs/Tree"},
            "loop": {"$ref": "#/$defs/Loop"},
        },
        "$defs": {
            "Side": {"enum": ["left", "right"]},
            "Tree": {"type": "object", "required": ["side"],
                     "properties": {"side": {"$ref": "#/$defs/Side"}, "below": {"$ref": "#/$defs/Tree"}}},
            "Loop": {"$ref": "#/$defs/Loop"},
        },
        "required": ["room", "odd, name", "tree"]}}});
    let bare = json!({"type": "function", "function": {"name": "stop_all"}});
    let mut names = Vec::new();
    for seed in 0..if cfg!(target_arch = "aarch64") { 4 } else { 16 } {
        let (said, tokens) = called(&[light.clone(), bare.clone()], seed, &|_, bytes| match bytes {
            b"]" | b"}" => 6.0,
            _ => 0.0,
        });
        let calls: Vec<&Delta> = said.iter().filter(|delta| !matches!(delta, Delta::Thought(_))).collect();
        let [Delta::Call(call)] = calls[..] else { panic!("{tokens}: {said:?}") };
        names.push(call.name.clone());
        let arguments = &call.arguments;
        if call.name == "stop_all" {
            assert!(arguments.is_empty(), "{tokens}");
            continue;
        }
        assert!(arguments["room"] == "hall" || arguments["room"] == "a \"quoted\" room", "{tokens}");
        assert!(arguments["odd, name"].is_null(), "{tokens}");
        let good = |name: &str, good: fn(&Value) -> bool| arguments.get(name).is_none_or(good);
        assert!(good("level", Value::is_i64) && good("note", Value::is_string), "{tokens}");
        assert!(matches!(arguments["tree"]["side"].as_str(), Some("left" | "right")), "{tokens}");
        assert!(good("scene", |scene| scene["warm"].is_boolean()), "{tokens}");
        assert!(
            good("hours", |hours| hours.as_array().is_some_and(|all| all.iter().all(Value::is_number))),
            "{tokens}"
        );
    }
    assert!(names.iter().any(|name| name == "set_light"), "{names:?}");
}

#[test]
fn no_required_call_nests_deeper_than_what_is_read() {
    let nested = |levels: usize, inner: Value| {
        (0..levels).fold(inner, |inner, _| json!({"type": "object", "required": ["in"], "properties": {"in": inner}}))
    };
    let tool = |parameters: Value| json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    let deep = tool(json!({"type": "object", "required": ["far", "near"],
        "properties": {"far": nested(11, json!({"$ref": "#/$defs/Deep"})), "near": {"$ref": "#/$defs/Deep"}},
        "$defs": {"Deep": nested(9, json!({"type": "boolean"}))}}));
    let open = tool(json!({"type": "object", "required": ["free"], "properties": {"free": {}}}));
    let lists = tool(json!({"type": "object", "required": ["list"],
        "properties": {"list": (0..30).fold(json!({"type": "null"}), |items, _| json!({"type": "array", "items": items}))}}));
    for tool in [deep, open, lists] {
        // Opens lists for a while, then closes what is open.
        let (said, tokens) = called(&[tool], 1, &|step, bytes| match bytes {
            b"[" if step < 60 => 20.0,
            b"]" | b"}" if step >= 60 => 20.0,
            _ => 0.0,
        });
        let calls: Vec<&Delta> = said.iter().filter(|delta| !matches!(delta, Delta::Thought(_))).collect();
        let [Delta::Call(call)] = calls[..] else { panic!("{tokens}: {said:?}") };
        assert!(tokens.matches(['[', '{']).count() >= 16, "{tokens}");
        if let Some(near) = call.arguments.get("near") {
            assert!((0..9).fold(near, |value, _| &value["in"]).is_boolean(), "{tokens}");
        }
    }
}

#[test]
fn what_cannot_be_a_form_is_refused() {
    let (tokenizer, grammars) = &*GRAMMARS;
    let refused = |format: Format| match grammars.constraint(&format) {
        Ok(_) => panic!("{format:?}"),
        Err(error) => error.to_string(),
    };
    assert!(refused(Format::Schema(json!({"type": "fruit"}))).contains("fruit"));
    assert!(refused(Format::Schema(json!({"$ref": "http://example.org/x"}))).contains("example.org"));
    assert!(!refused(Format::Regex("(".into())).is_empty());
    assert!(!refused(Format::Lark("start: nothing".into())).is_empty());
    assert_eq!(refused(Format::Gbnf("root ::= \n  x y".into())), "line 2, column 3: there is no rule x");
    assert!(refused(Format::Regex("a".repeat(70_000))).contains("65536"));
    // Each takes work without end in a careless engine: refused or bounded, and soon.
    let begun = Instant::now();
    for format in [
        Format::Regex("(((a{1,999}){1,999}){1,999}){1,999}".into()),
        Format::Regex("(a|b|ab)*c(.*)(.*)(.*)(.*)(.*)d{500}".into()),
        Format::Schema(json!({"$ref": "#"})),
        Format::Schema(json!({"type": "array", "minItems": 1_000_000_000_u64})),
        Format::Lark("start: start start | \"a\"".into()),
    ] {
        if let Ok(mut constraint) = grammars.constraint(&format) {
            let _ = constraint.apply(&mut vec![0.0; tokenizer.vocab_size()]);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
