//! Queries and answers as they travel (RFC 1035, 4.1; RFC 6891).
//!
//! Of a query only the question is read, and how long an answer may be. The question is repeated byte for byte: resolvers
//! check it against forged answers, and ask for types of records that nobody here knows.

use std::net::IpAddr;

/// The length of the header.
const HEADER: usize = 12;
/// What a query of datagrams without EDNS may be answered with.
const SMALLEST: u16 = 512;
/// What may be sent here in one datagram.
const OUR_DATAGRAM: u16 = 1232;
/// Not kept by anybody: the next moment may have another answer.
const LIFE: u32 = 0;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// Types of records (RFC 1035, 3.2.2; RFC 3596, 2.1).
pub(super) const A: u16 = 1;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
pub(super) const ANY: u16 = 255;
const OPT: u16 = 41;

/// How a query ended (RFC 1035, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    NoError = 0,
    ServerFailure = 2,
    NameError = 3,
}

/// A question for records of one name.
#[derive(Debug)]
pub(super) struct Query<'a> {
    bytes: &'a [u8],
    /// The name, without a dot at the end.
    pub(super) name: String,
    /// The type of records that it asks for.
    pub(super) kind: u16,
    /// Where the question ends.
    end: usize,
    /// What may be sent back in one datagram, if it says so.
    datagram: Option<u16>,
}

/// What an answer says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Address(IpAddr),
    Name(String),
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Name(_) => PTR,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(v4)) => v4.octets().to_vec(),
            Self::Address(IpAddr::V6(v6)) => v6.octets().to_vec(),
            Self::Name(name) => {
                let labels = name.split('.').filter(|label| (1..64).contains(&label.len()));
                let mut data: Vec<u8> =
                    labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
                data.push(0);
                data
            }
        }
    }

    /// The record of the name in the question, to which it points.
    fn bytes(&self) -> Vec<u8> {
        const POINTER: u16 = 0xc000 | HEADER as u16;
        let data = self.data();
        let mut bytes: Vec<u8> =
            [POINTER, self.kind(), CLASS_IN].into_iter().flat_map(u16::to_be_bytes).collect();
        bytes.extend(LIFE.to_be_bytes());
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Whether this may be a query at all.
pub(super) fn is_query(bytes: &[u8]) -> bool {
    bytes.len() > HEADER && bytes[2] & 0x80 == 0
}

/// Whether a name server says here that somebody else should be asked.
pub(super) fn is_refusal(answer: &[u8]) -> bool {
    const NOT_IMPLEMENTED: u8 = 4;
    const REFUSED: u8 = 5;
    let code = answer.get(3).map(|flags| flags & 15);
    code.is_none_or(|code| [Code::ServerFailure as u8, NOT_IMPLEMENTED, REFUSED].contains(&code))
}

/// The name that begins at `at`, and where it ends.
fn read_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = bytes.get(at..at + length).filter(|_| length < 64)?;
        // A dot in a label is none between labels: no name of ours has it.
        labels.push(std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?);
        at += length;
    }
}

impl<'a> Query<'a> {
    /// Reads a query with one question for a name of the Internet; none if it is anything else.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        const OPCODE: u8 = 0x78;
        let standard = is_query(bytes) && bytes[2] & OPCODE == 0;
        if !standard || number(bytes, 4)? != 1 {
            return None;
        }
        let (name, end) = read_name(bytes, HEADER)?;
        let (kind, class) = (number(bytes, end)?, number(bytes, end + 2)?);
        let query = Self { bytes, name, kind, end: end + 4, datagram: None };
        let datagram = query.told_datagram();
        [CLASS_IN, CLASS_ANY].contains(&class).then_some(Self { datagram, ..query })
    }

    /// The size in the pseudo-record of EDNS, which is the first of those that follow a question as a rule, and the only
    /// one.
    fn told_datagram(&self) -> Option<u16> {
        let [answers, authorities, additional] = [6, 8, 10].map(|at| number(self.bytes, at));
        if (answers?, authorities?) != (0, 0) || additional? == 0 {
            return None;
        }
        // The root's name, the type, and the size in place of a class.
        let record = self.bytes.get(self.end..self.end + 5)?;
        (record[0] == 0 && number(record, 1)? == OPT).then(|| number(record, 3)).flatten()
    }

    /// The answer, of which as many records are left as fit in a datagram, unless it goes over a `stream`. One that lacks
    /// some says so, to be asked for again over a connection.
    pub(super) fn answer(&self, code: Code, records: &[Record], stream: bool) -> Vec<u8> {
        const EXTENSION: usize = 11;
        let extension = self.datagram.map_or(0, |_| EXTENSION);
        let most = match stream {
            true => usize::from(u16::MAX),
            false => self.datagram.map_or(SMALLEST, |told| told.max(SMALLEST)).into(),
        };
        let mut room = most.saturating_sub(self.end + extension);
        let mut fitting = Vec::new();
        for record in records.iter().map(Record::bytes) {
            let Some(left) = room.checked_sub(record.len()) else { break };
            room = left;
            fitting.push(record);
        }
        let mut answer = self.header(code, fitting.len(), fitting.len() < records.len());
        answer.extend(&self.bytes[HEADER..self.end]);
        answer.extend(fitting.concat());
        if self.datagram.is_some() {
            answer.push(0);
            answer.extend([OPT, OUR_DATAGRAM].into_iter().flat_map(u16::to_be_bytes));
            // No further code, version 0, no flags, no options.
            answer.extend([0; 6]);
        }
        answer
    }

    fn header(&self, code: Code, answers: usize, cut: bool) -> Vec<u8> {
        const RESPONSE: u8 = 0x80;
        const TRUNCATED: u8 = 0x02;
        const RECURSION_DESIRED: u8 = 0x01;
        const RECURSION_AVAILABLE: u8 = 0x80;
        const CHECKING_DISABLED: u8 = 0x10;
        let mut header = self.bytes[..2].to_vec();
        header.push(RESPONSE | if cut { TRUNCATED } else { 0 } | self.bytes[2] & RECURSION_DESIRED);
        header.push(RECURSION_AVAILABLE | self.bytes[3] & CHECKING_DISABLED | code as u8);
        let counts = [1, answers as u16, 0, u16::from(self.datagram.is_some())];
        header.extend(counts.into_iter().flat_map(u16::to_be_bytes));
        header
    }
}

/// The answer that nobody has one. It repeats the question, without which resolvers wait for another answer.
pub(super) fn failed(query: &[u8], code: Code) -> Option<Vec<u8>> {
    if let Some(query) = Query::read(query) {
        return Some(query.answer(code, &[], true));
    }
    let mut reply = query.get(..HEADER)?.to_vec();
    // A response with this code, and no sections.
    reply[2] |= 0x80;
    reply[3] = 0x80 | code as u8;
    reply[4..].fill(0);
    Some(reply)
}
