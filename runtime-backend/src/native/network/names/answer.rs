//! From a query to its answer (RFC 1035, 6891), as far as the directory has it.

use super::directory::Directory;
use simple_dns::rdata::{A, AAAA, OPT, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a query of datagrams without EDNS may be answered with.
const SMALLEST: usize = 512;
/// What may be sent here in one datagram.
const OUR_DATAGRAM: u16 = 1232;
/// The length of the header.
const HEADER: usize = 12;
/// Not kept by anybody: the next moment may have another answer.
const LIFE: u32 = 0;

/// What becomes of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Others know.
    Elsewhere,
    /// It is none.
    Nothing,
}

/// Answers what the container `id` asks; `stream` if the answer may be as long as it is.
pub(super) fn reply(directory: &Directory, id: &str, query: &[u8], stream: bool) -> Reply {
    let Ok(packet) = Packet::parse(query) else {
        // A type that is not known here may be known elsewhere.
        return if query.len() > HEADER { Reply::Elsewhere } else { Reply::Nothing };
    };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Reply::Nothing;
    }
    let (OPCODE::StandardQuery, [question]) = (packet.opcode(), &packet.questions[..]) else {
        return Reply::Elsewhere;
    };
    let name = question.qname.to_string();
    let asked = question.qtype;
    if let Some(address) = reversed(&name) {
        let found = directory.name_at(id, address);
        let Some(found) = found.as_deref().and_then(|name| Name::new(name).ok()) else {
            // Addresses of these networks mean nothing to others.
            let ours = is_ours(address).then(|| answer(&packet, RCODE::NameError, Vec::new(), stream));
            return ours.flatten().map_or(Reply::Elsewhere, Reply::Answer);
        };
        let wanted = [QTYPE::TYPE(TYPE::PTR), QTYPE::ANY].contains(&asked);
        let data = wanted.then_some(RData::PTR(PTR(found)));
        return told(answer(&packet, RCODE::NoError, data.into_iter().collect(), stream));
    }
    let addresses = directory.addresses(id, &name);
    if addresses.is_empty() {
        return Reply::Elsewhere;
    }
    let data = addresses.into_iter().filter_map(|address| match (address, asked) {
        (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => Some(RData::A(A { address: v4.into() })),
        (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA) | QTYPE::ANY) => {
            Some(RData::AAAA(AAAA { address: v6.into() }))
        }
        _ => None,
    });
    // A name without an address of this kind is there all the same: no record, and no error.
    told(answer(&packet, RCODE::NoError, data.collect(), stream))
}

fn told(answer: Option<Vec<u8>>) -> Reply {
    answer.map_or(Reply::Nothing, Reply::Answer)
}

/// The answer that nobody has one.
pub(super) fn failed(query: &[u8], code: RCODE) -> Option<Vec<u8>> {
    match Packet::parse(query) {
        Ok(packet) => answer(&packet, code, Vec::new(), true),
        Err(_) => {
            let mut reply = query.get(..HEADER)?.to_vec();
            // A response with this code, and no sections.
            reply[2] |= 0x80;
            reply[3] = 0x80 | code as u8;
            reply[4..].fill(0);
            Some(reply)
        }
    }
}

fn answer(query: &Packet<'_>, code: RCODE, data: Vec<RData<'_>>, stream: bool) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(query.id());
    *reply.opcode_mut() = query.opcode();
    *reply.rcode_mut() = code;
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    if query.opt().is_some() {
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: OUR_DATAGRAM, version: 0 });
    }
    reply.questions.clone_from(&query.questions);
    let name = query.questions.first()?.qname.clone();
    let record = |data| ResourceRecord::new(name.clone(), CLASS::IN, LIFE, data);
    reply.answers = data.into_iter().map(record).collect();
    let bytes = reply.build_bytes_vec_compressed().ok()?;
    let most = query.opt().map_or(SMALLEST, |opt| usize::from(opt.udp_packet_size).max(SMALLEST));
    if stream || bytes.len() <= most {
        return Some(bytes);
    }
    // To be asked again over a connection.
    reply.answers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec_compressed().ok()
}

/// The address that a name of the reverse tree is for (RFC 1035, 3.5; RFC 3596, 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = labels.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits: Vec<u32> = labels
        .split('.')
        .rev()
        .map(|label| label.chars().next().filter(|_| label.len() == 1)?.to_digit(16))
        .collect::<Option<_>>()?;
    (digits.len() == 32).then(|| {
        let address = digits.iter().fold(0_u128, |sum, digit| sum << 4 | u128::from(*digit));
        Ipv6Addr::from(address).into()
    })
}

/// Whether it is an address of networks that declare none of their own.
fn is_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10 && v4.octets()[1] >= 128,
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd73, 0x686b, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::shop;
    use super::*;
    use simple_dns::{QCLASS, Question};

    fn query(name: &str, kind: TYPE, datagram: Option<u16>) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, kind.into(), QCLASS::CLASS(CLASS::IN), false));
        if let Some(udp_packet_size) = datagram {
            *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
        }
        packet.build_bytes_vec().unwrap()
    }

    /// What an answer says: its code, whether it is cut, and its records.
    fn said(reply: &Reply) -> String {
        let Reply::Answer(bytes) = reply else { return format!("{reply:?}") };
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.id(), 7);
        assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        let records = packet.answers.iter().map(|record| match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).to_string(),
            RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).to_string(),
            RData::PTR(name) => name.0.to_string(),
            other => format!("{other:?}"),
        });
        let cut = if packet.has_flags(PacketFlag::TRUNCATION) { " cut" } else { "" };
        format!("{:?}{cut} {}", packet.rcode(), records.collect::<Vec<_>>().join(" "))
    }

    /// Every resolver is given what the protocol says: no record is another thing than no name.
    #[test]
    fn answers_are_what_the_protocol_says() {
        let (directory, _told) = shop();
        let asked = |name, kind| said(&reply(&directory, "web-1", &query(name, kind, None), false));
        assert_eq!(asked("DB", TYPE::A), "NoError 10.128.1.3");
        assert_eq!(asked("db.", TYPE::AAAA), "NoError ");
        assert_eq!(asked("db", TYPE::MX), "NoError ");
        assert_eq!(asked("one", TYPE::AAAA), "NoError fd73::2");
        assert_eq!(asked("example.org", TYPE::A), "Elsewhere");
        assert_eq!(asked("3.1.128.10.in-addr.arpa", TYPE::PTR), "NoError db");
        assert_eq!(asked("9.1.128.10.in-addr.arpa", TYPE::PTR), "NameError ");
        assert_eq!(asked("9.1.127.10.in-addr.arpa", TYPE::PTR), "Elsewhere");
        let v6 = format!("2.{}3.7.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(asked(&v6, TYPE::PTR), "NoError web");
    }

    /// The spelling of the question comes back: some resolvers check it, against forged answers.
    #[test]
    fn the_question_is_repeated_as_it_was() {
        let (directory, _told) = shop();
        let Reply::Answer(bytes) = reply(&directory, "web-1", &query("dB", TYPE::A, Some(4096)), false)
        else {
            panic!("no answer");
        };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.questions[0].qname.to_string(), "dB");
        assert!(packet.opt().is_some());
    }

    /// An answer that is too long for a datagram is asked for again, over a connection.
    #[test]
    fn long_answers_are_cut() {
        let directory = Directory::default();
        let (_told, exit) = tokio::sync::watch::channel(None);
        for number in 0..60 {
            let id = if number == 0 { "web".to_owned() } else { format!("web-{number}") };
            let addresses = vec![Ipv4Addr::new(10, 128, 0, 2 + number).into()];
            let member =
                super::super::Member { id, names: vec!["web".into()], addresses, exit: exit.clone() };
            directory.enter("net", member);
        }
        let asked =
            |datagram, stream| said(&reply(&directory, "web", &query("web", TYPE::A, datagram), stream));
        assert_eq!(asked(None, false), "NoError cut ");
        assert_eq!(asked(None, true).split(' ').count(), 61);
        assert_eq!(asked(Some(1232), false).split(' ').count(), 61);
    }

    /// What is no query is not answered, and what is not understood is refused, not dropped.
    #[test]
    fn nonsense_is_survived() {
        let (directory, _told) = shop();
        let mut response = query("db", TYPE::A, None);
        response[2] |= 0x80;
        assert_eq!(reply(&directory, "web-1", &response, false), Reply::Nothing);
        assert_eq!(reply(&directory, "web-1", b"short", false), Reply::Nothing);
        let strange = [&query("db", TYPE::A, None)[..14], &[0xff; 9]].concat();
        assert_eq!(reply(&directory, "web-1", &strange, false), Reply::Elsewhere);
        let refused = failed(&strange, RCODE::ServerFailure).unwrap();
        assert_eq!((refused.len(), refused[3] & 15), (12, 2));
    }
}
