//! A small mutator: seeds in, seeds with something wrong out. The same number gives the same bytes,
//! so a failure is told by its number.

/// What often is an edge.
const EDGES: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f",
    b"\x80",
    b"\n",
    b"\"",
    b"\\u0000",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"true",
    b"''",
    b"=",
];
/// Further than any parser goes down.
const DEEP: usize = 400;
/// What mutations are added up to.
const LONGEST: usize = 8_192;

pub(crate) struct Mutator<'a> {
    seeds: &'a [Vec<u8>],
    state: u64,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(seeds: &'a [Vec<u8>], number: u64) -> Self {
        // Neighbouring numbers shall have nothing in common (splitmix64).
        let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self {
            seeds,
            state: state | 1,
        }
    }

    /// A number below `below`, which is not 0 (xorshift64).
    fn below(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).unwrap_or_default() % below
    }

    /// A seed with one to six things wrong.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut bytes = self.seeds[seed].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut bytes);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let upto = at + self.below(bytes.len() - at + 1);
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap_or_default(),
            2 => drop(bytes.drain(at..upto)),
            3 => {
                let part = bytes[at..upto].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let edge = EDGES[self.below(EDGES.len())];
                bytes.splice(at..at, edge.iter().copied());
            }
            5 => bytes.truncate(at),
            6 => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds[other].len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&self.seeds[other][from..]);
            }
            7 => {
                let open = [b'[', b'{', b'"', b'(', 0xff][self.below(5)];
                let deep = vec![open; self.below(DEEP)];
                bytes.splice(at..at, deep);
            }
            _ => bytes[at..upto].reverse(),
        }
    }
}
