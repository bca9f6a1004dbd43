//! Where Jinja2 is Python and minijinja is not.

use std::borrow::Cow;

use minijinja::value::{Kwargs, StringInput, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Adds what transformers adds to its environment, and Python's ways of printing, testing and trimming.
pub(super) fn install(environment: &mut Environment) {
    environment.set_unknown_method_callback(methods);
    environment.set_formatter(|out, state, value| match float(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_filter("trim", |value: StringInput<'_>, chars: Option<Cow<'_, str>>| match chars {
        Some(chars) => value.as_str().trim_matches(|c| chars.contains(c)).to_owned(),
        None => value.as_str().trim_matches(is_space).to_owned(),
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
}

/// Python's `str.isspace`: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn methods(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), args) {
        match method {
            "strip" => return Ok(text.trim_matches(is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(is_space).into()),
            "split" => return Ok(text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect()),
            _ => {}
        }
    }
    // A key of the request may be called like the method: `message.get` is the method all the same.
    if let ("get", ValueKind::Map) = (method, value.kind()) {
        let (key, default): (&Value, Option<Value>) = from_args(args)?;
        let found = value.get_item(key)?;
        return Ok(if found.is_undefined() { default.unwrap_or_else(|| Value::from(())) } else { found });
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Python's `repr` of a float; `None` for everything else.
fn float(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let number = f64::try_from(value.clone()).ok()?;
    Some(float_repr(number))
}

fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// Levels that `tojson` follows: each takes stack.
const MAX_DEPTH: usize = 128;

/// Whether `value` has at most `levels` levels of lists and maps.
fn is_shallow(value: &Value, levels: usize) -> bool {
    let container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
    if !container {
        return true;
    }
    levels > 0
        && value.try_iter().is_ok_and(|mut items| {
            items.all(|item| match value.kind() {
                ValueKind::Map => value.get_item(&item).is_ok_and(|item| is_shallow(&item, levels - 1)),
                _ => is_shallow(&item, levels - 1),
            })
        })
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let invalid = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    if !is_shallow(value, MAX_DEPTH) {
        return Err(Error::new(ErrorKind::BadSerialization, format!("more than {MAX_DEPTH} levels")));
    }
    let mut value = serde_json::to_value(value).map_err(invalid)?;
    if sort == Some(true) {
        value.sort_all_objects();
    }
    let mut out = String::new();
    write_json(&value, indent, 0, &mut out);
    Ok(out)
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, level: usize, out: &mut String) {
    use serde_json::Value;
    let (open, close, length) = match value {
        Value::Array(items) => ('[', ']', items.len()),
        Value::Object(entries) => ('{', '}', entries.len()),
        Value::Number(number) if number.is_f64() => {
            return out.push_str(&float_repr(number.as_f64().unwrap_or_default()));
        }
        other => return out.push_str(&other.to_string()),
    };
    let level = level + 1;
    let line = |out: &mut String, level: usize| {
        if let (Some(indent), 1..) = (indent, length) {
            out.push('\n');
            // Bounded, as a template may ask for any indent.
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(level).min(1024)));
        }
    };
    let separate = |out: &mut String, index: usize| {
        if index > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(out, level);
    };
    out.push(open);
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| {
            separate(out, index);
            write_json(item, indent, level, out);
        }),
        Value::Object(entries) => entries.iter().enumerate().for_each(|(index, (key, value))| {
            separate(out, index);
            out.push_str(&Value::from(key.as_str()).to_string());
            out.push_str(": ");
            write_json(value, indent, level, out);
        }),
        _ => {}
    }
    line(out, level - 1);
    out.push(close);
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The current time in UTC by the common fields of `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    strftime(format, now)
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{:02}", time / 3600),
            Some('M') => format!("{:02}", time / 60 % 60),
            Some('S') => format!("{:02}", time % 60),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let field: String = other.into_iter().collect();
                let message = format!("strftime_now: %{field} is not supported (Y y m d H M S B b A a % are)");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// Year, month and day of the day that is `days` after 1970-01-01, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have 146,097 days.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(number), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @…` says the same.
        let all = "%Y-%m-%d %H:%M:%S %A %a %d %B %b %y %%";
        assert_eq!(strftime(all, 0).unwrap(), "1970-01-01 00:00:00 Thursday Thu 01 January Jan 70 %");
        assert_eq!(strftime(all, 951_827_696).unwrap(), "2000-02-29 12:34:56 Tuesday Tue 29 February Feb 00 %");
        assert_eq!(strftime("%Y-%m-%d", 4_107_542_399).unwrap(), "2100-02-28");
        assert!(strftime("%Q", 0).is_err());
    }
}
