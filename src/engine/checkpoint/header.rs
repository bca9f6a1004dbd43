//! The header of a safetensors file: pure, and everything in it is distrusted.
//!
//! ```text
//! [ header length, 8 bytes little-endian ][ header, JSON ][ data, tensors back to back ]
//! {"__metadata__": {…}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//! ```
//!
//! Offsets count from the start of the data. The format allows neither overlap nor gaps, so neither is read.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::{Problem, quote};

/// Longest header that is read; the published E2B file has about 0.4 MB.
pub const MAX_HEADER: u64 = 64 << 20;

/// Most tensors in a file.
pub const MAX_TENSORS: usize = 1 << 17;

/// Longest tensor name, in bytes.
const MAX_NAME: usize = 512;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Bytes before the header.
const PREFIX: usize = 8;

/// Type of a tensor's elements. Only four occur in the text model; the others may belong to other modalities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned bytes: packed 2-bit and 4-bit codes.
    U8,
    /// Signed bytes: 8-bit codes.
    I8,
    /// The upper halves of `f32`s.
    Bf16,
    /// IEEE single precision.
    F32,
    /// A type of the format that the text model has no use for: its name and bits.
    Other(&'static str, u8),
}

impl Dtype {
    fn parse(name: &str) -> Option<Dtype> {
        const OTHERS: [(&str, u8); 17] = [
            ("BOOL", 8),
            ("F4", 4),
            ("F6_E2M3", 6),
            ("F6_E3M2", 6),
            ("F8_E5M2", 8),
            ("F8_E4M3", 8),
            ("F8_E5M2FNUZ", 8),
            ("F8_E4M3FNUZ", 8),
            ("F8_E8M0", 8),
            ("I16", 16),
            ("U16", 16),
            ("F16", 16),
            ("I32", 32),
            ("U32", 32),
            ("F64", 64),
            ("I64", 64),
            ("U64", 64),
        ];
        match name {
            "U8" => Some(Dtype::U8),
            "I8" => Some(Dtype::I8),
            "BF16" => Some(Dtype::Bf16),
            "F32" => Some(Dtype::F32),
            "C64" => Some(Dtype::Other("C64", 64)),
            _ => OTHERS.iter().find(|(n, _)| *n == name).map(|&(n, bits)| Dtype::Other(n, bits)),
        }
    }

    /// The format's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::Bf16 => "BF16",
            Dtype::F32 => "F32",
            Dtype::Other(name, _) => name,
        }
    }

    /// Bits in an element.
    pub fn bits(self) -> u64 {
        match self {
            Dtype::U8 | Dtype::I8 => 8,
            Dtype::Bf16 => 16,
            Dtype::F32 => 32,
            Dtype::Other(_, bits) => bits.into(),
        }
    }
}

/// What the header says of one tensor, checked against the file's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where the tensor is, in bytes from the start of the file.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl Entry {
    /// Type and shape as messages write them: `U8 [512, 32]`.
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.dtype.name(), self.shape)
    }
}

/// `__metadata__`: names and texts.
pub type Metadata = HashMap<String, String>;

/// The header of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub entries: HashMap<String, Entry>,
    /// What else the file says about itself.
    pub metadata: Metadata,
}

/// Reads the header at the start of `file`, a whole file.
///
/// # Errors
///
/// The length or the JSON is broken, a name stands twice, a type is unknown, shape and bytes disagree, or the tensors do
/// not cover the data exactly.
pub fn parse(file: &[u8]) -> Result<Header, Problem> {
    parse_start(file, file.len() as u64)
}

/// The bytes that a file of `len` bytes has before its data, told by its first eight.
///
/// # Errors
///
/// The header is too long for the file or for anybody.
pub fn length(prefix: [u8; PREFIX], len: u64) -> Result<u64, Problem> {
    let (json, left) = (u64::from_le_bytes(prefix), len.saturating_sub(PREFIX as u64));
    if json > MAX_HEADER {
        return Err(Problem::at("header length", format!("at most {MAX_HEADER} bytes"), json.to_string()));
    }
    if json > left {
        let expected = format!("at most {left}, what the file has left (is it truncated?)");
        return Err(Problem::at("header length", expected, json.to_string()));
    }
    Ok(PREFIX as u64 + json)
}

/// As [`parse`], of a file of `len` bytes that begins with `start`, where at least the header is.
///
/// # Errors
///
/// As there.
pub fn parse_start(start: &[u8], len: u64) -> Result<Header, Problem> {
    let Some(&prefix) = start.first_chunk() else {
        return Err(Problem::whole("a safetensors file of at least 8 bytes", format!("{} bytes", start.len())));
    };
    let data_start = length(prefix, len)? as usize;
    let data_len = len as usize - data_start;
    let json = start.get(PREFIX..data_start).ok_or_else(|| Problem::whole("the whole header", "its beginning"))?;
    let mut last = String::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let (mut raw, metadata) = Entries { last: &mut last }
        .deserialize(&mut deserializer)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|e| {
            let place = if last.is_empty() { "header".to_owned() } else { format!("header, at {}", quote(&last)) };
            Problem::at(place, "JSON as the safetensors format describes it", quote(&e.to_string()))
        })?;
    raw.sort_by_key(|(_, entry)| entry.data_offsets);

    let mut entries = HashMap::with_capacity(raw.len());
    let mut end_of_last = 0;
    let mut name_of_last = String::from("the start of the data");
    for (name, raw) in raw {
        let entry = check(&name, &raw, data_start, data_len)?;
        let [start, end] = raw.data_offsets;
        if start != end_of_last {
            let what = if start < end_of_last { "an overlap" } else { "a gap" };
            return Err(Problem::at(
                quote(&name),
                format!("offsets that continue at {end_of_last}, after {}", quote(&name_of_last)),
                format!("data_offsets [{start}, {end}]: {what}"),
            ));
        }
        (end_of_last, name_of_last) = (end, name.clone());
        if entries.insert(name, entry).is_some() {
            return Err(Problem::at(quote(&name_of_last), "one tensor of this name", "two"));
        }
    }
    if end_of_last != data_len as u64 {
        return Err(Problem::whole(
            format!("{end_of_last} bytes of data after the header, as its tensors say"),
            format!("{data_len} bytes"),
        ));
    }
    Ok(Header { entries, metadata })
}

/// One entry on its own: type known, offsets in order and inside the data, shape and length in agreement.
fn check(name: &str, raw: &RawEntry, data_start: usize, data_len: usize) -> Result<Entry, Problem> {
    let Some(dtype) = Dtype::parse(&raw.dtype) else {
        return Err(Problem::at(quote(name), "a dtype of the safetensors format", quote(&raw.dtype)));
    };
    let [start, end] = raw.data_offsets;
    if start > end || end > data_len as u64 {
        return Err(Problem::at(
            quote(name),
            format!("data_offsets in order and at most {data_len}, the bytes of data in the file (is it truncated?)"),
            format!("[{start}, {end}]"),
        ));
    }
    let bits = raw.shape.iter().try_fold(dtype.bits(), |product, &d| product.checked_mul(d));
    if bits != (end - start).checked_mul(8) {
        return Err(Problem::at(
            quote(name),
            format!("as many bytes as {} {:?} takes", dtype.name(), raw.shape),
            format!("{} bytes, data_offsets [{start}, {end}]", end - start),
        ));
    }
    // A dimension can exceed the file only beside a dimension of 0, and then only on paper.
    let shape = raw.shape.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    Ok(Entry { dtype, shape, start: data_start + start as usize, len: (end - start) as usize })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    #[serde(deserialize_with = "bounded_shape")]
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn bounded_shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Shape;
    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_RANK} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(d) = seq.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                }
                shape.push(d);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Shape)
}

/// The header's object in file order, `__metadata__` apart. `last` tells an error which tensor was being read.
struct Entries<'a> {
    last: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = (Vec<(String, RawEntry)>, Metadata);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = (Vec<(String, RawEntry)>, Metadata);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut metadata) = (Vec::new(), Metadata::new());
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MAX_NAME {
                return Err(A::Error::custom(format_args!("a tensor name of more than {MAX_NAME} bytes")));
            }
            self.last.clone_from(&name);
            if name == "__metadata__" {
                metadata.extend(
                    map.next_value::<HashMap<String, Texts>>()?.into_iter().filter_map(|(k, v)| Some((k, v.0?))),
                );
                continue;
            }
            if entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            entries.push((name, map.next_value()?));
        }
        self.last.clear();
        Ok((entries, metadata))
    }
}

/// A value of the metadata, if it is the text that the format asks for.
struct Texts(Option<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Texts, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Other(IgnoredAny),
        }
        Ok(Texts(match Any::deserialize(deserializer)? {
            Any::Text(text) => Some(text),
            Any::Other(_) => None,
        }))
    }
}
