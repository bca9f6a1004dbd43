//! Answers for devices with a small buffer: text in pieces of a fixed size, without I/O.
//!
//! A piece is a number, a mark and text. Numbers count from 1. The mark says what follows:
//!
//! ```text
//! 1:The window in the      more follows
//! 2:kitchen is             more follows
//! 3.open.                  the last piece of an answer
//! 1!busy: the queue is …   the last piece of an error, its code first
//! ```
//!
//! The texts put one after the other are the whole text. Pieces are cut between characters, so each one is UTF-8.

/// Smallest packet that can be asked for.
pub const MIN_PACKET: usize = 64;

/// Largest packet that can be asked for: longer lengths would take a third byte in the header.
pub const MAX_PACKET: usize = 16_384;

/// Bytes of a PUBLISH that are neither topic nor payload: its kind (1), its length (2 up to 16,383), the topic's
/// length (2) and, at QoS 1, the packet id (2). The broker leaves MQTT 5 properties out for MQTT 3.1.1 devices.
const HEADER: usize = 7;

/// Least room that holds a number, a mark and a character.
const MIN_ROOM: usize = 16;

/// What the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer.
    Answer,
    /// Code and message of a failure.
    Error,
}

/// Bytes that a packet of `packet` bytes has for a payload below a topic of `topic` bytes; `None` when there is no room for
/// a piece.
pub fn room(packet: usize, topic: usize) -> Option<usize> {
    packet.checked_sub(HEADER + topic).filter(|&room| room >= MIN_ROOM)
}

/// The payloads that carry `text`, each of at most `room` bytes, in their order. There is at least one.
///
/// # Panics
///
/// When `room` is less than [`room`] gives.
pub fn pieces(kind: Kind, text: &str, room: usize) -> Vec<String> {
    assert!(room >= MIN_ROOM, "a room of {room} bytes");
    let last = match kind {
        Kind::Answer => '.',
        Kind::Error => '!',
    };
    let mut pieces = Vec::with_capacity(text.len() / room + 1);
    let mut rest = text;
    loop {
        let number = (pieces.len() + 1).to_string();
        // At least 4 bytes, the longest character: a text in memory makes no number of more than 11 digits here.
        let space = room - number.len() - 1;
        if rest.len() <= space {
            pieces.push(format!("{number}{last}{rest}"));
            return pieces;
        }
        let (piece, more) = rest.split_at(rest.floor_char_boundary(space));
        pieces.push(format!("{number}:{piece}"));
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device does with the pieces.
    fn joined(pieces: &[String], room: usize) -> (Kind, String) {
        let mut text = String::new();
        for (at, piece) in pieces.iter().enumerate() {
            assert!(piece.len() <= room, "{piece:?} in {room}");
            let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap();
            assert_eq!(piece[..digits], (at + 1).to_string());
            text.push_str(&piece[digits + 1..]);
            match (&piece[digits..=digits], at + 1 == pieces.len()) {
                (":", false) => assert!(piece.len() + 3 >= room, "{piece:?} leaves room in {room}"),
                (".", true) => return (Kind::Answer, text),
                ("!", true) => return (Kind::Error, text),
                (mark, last) => panic!("{mark} at the end: {last}"),
            }
        }
        panic!("no end");
    }

    #[test]
    fn pieces_fit_and_make_the_whole_text() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..3000 {
            let kind = if round % 3 == 0 { Kind::Error } else { Kind::Answer };
            let letters = ['a', 'é', '漢', '🔥', '\0', '9', ':', '.', '!'];
            let length = rng.usize(..if round % 100 == 0 { 20_000 } else { 200 });
            let text: String = (0..length).map(|_| letters[rng.usize(..letters.len())]).collect();
            let room = rng.usize(MIN_ROOM..300);
            assert_eq!(joined(&pieces(kind, &text, room), room), (kind, text));
        }
    }

    #[test]
    fn edges_of_a_piece() {
        assert_eq!(pieces(Kind::Answer, "", 16), ["1."]);
        assert_eq!(pieces(Kind::Error, "busy: full", 16), ["1!busy: full"]);
        // 14 bytes fit beside number and mark.
        assert_eq!(pieces(Kind::Answer, "12345678901234", 16), ["1.12345678901234"]);
        assert_eq!(pieces(Kind::Answer, "123456789012345", 16), ["1:12345678901234", "2.5"]);
        assert_eq!(pieces(Kind::Answer, "1234567890123é", 16), ["1:1234567890123", "2.é"]);
    }

    #[test]
    fn the_room_counts_the_whole_packet() {
        assert_eq!(room(256, 30), Some(219));
        assert_eq!(room(64, 41), Some(16));
        assert_eq!(room(64, 42), None);
        assert_eq!(room(64, 640), None);
    }
}
