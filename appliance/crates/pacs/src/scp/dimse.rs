//! DIMSE command sets (PS3.7 6.3.1): implicit little endian, group 0000, read and written by hand because a command
//! is a dozen short elements from a peer that nobody has vetted.

use crate::identify::uid;

/// What a peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Store,
    Echo,
    Cancel,
    Other,
}

/// A request (PS3.7 9.3.1, 9.3.5).
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) command_field: u16,
    pub(super) message_id: u16,
    pub(super) sop_class: String,
    pub(super) sop_instance: String,
    pub(super) has_data_set: bool,
}

/// The outcome of a request (PS3.7 annex C, PS3.4 B.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Success,
    /// Refused: out of resources; the peer tries again later.
    OutOfResources,
    /// Error: the data set does not match the SOP class.
    DataSetMismatch,
    /// Error: cannot understand.
    CannotUnderstand,
    SopClassNotSupported,
    UnrecognizedOperation,
}

impl Status {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Success => 0x0000,
            Self::OutOfResources => 0xA700,
            Self::DataSetMismatch => 0xA900,
            Self::CannotUnderstand => 0xC000,
            Self::SopClassNotSupported => 0x0122,
            Self::UnrecognizedOperation => 0x0211,
        }
    }
}

const NO_DATA_SET: u16 = 0x0101;

/// Reads a command set; none where it is no request.
pub(super) fn read_request(mut bytes: &[u8]) -> Option<Request> {
    let (mut command, mut message_id, mut data_set_type) = (None, None, NO_DATA_SET);
    let (mut sop_class, mut sop_instance) = (String::new(), String::new());
    while !bytes.is_empty() {
        let header = bytes.get(..8)?;
        let group = u16::from_le_bytes([header[0], header[1]]);
        let element = u16::from_le_bytes([header[2], header[3]]);
        let length =
            usize::try_from(u32::from_le_bytes([header[4], header[5], header[6], header[7]])).ok()?;
        let value = bytes.get(8..)?.get(..length)?;
        bytes = &bytes[8 + length..];
        let number = || value.get(..2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let text = || std::str::from_utf8(value).ok().and_then(uid).unwrap_or_default().to_owned();
        match (group, element) {
            (0, 0x0002) => sop_class = text(),
            (0, 0x0100) => command = number(),
            (0, 0x0110) => message_id = number(),
            (0, 0x0800) => data_set_type = number()?,
            (0, 0x1000) => sop_instance = text(),
            (0, _) => {}
            _ => return None,
        }
    }
    let command_field = command?;
    let operation = match command_field {
        0x0001 => Operation::Store,
        0x0030 => Operation::Echo,
        0x0FFF => Operation::Cancel,
        // Responses have the highest bit set; nobody was asked anything.
        answer if answer & 0x8000 != 0 => return None,
        _ => Operation::Other,
    };
    let has_data_set = data_set_type != NO_DATA_SET;
    let message_id = match operation {
        Operation::Cancel => message_id.unwrap_or(0),
        _ => message_id?,
    };
    Some(Request { operation, command_field, message_id, sop_class, sop_instance, has_data_set })
}

/// Writes the response to a request.
pub(super) fn write_response(request: &Request, status: Status) -> Vec<u8> {
    fn element(set: &mut Vec<u8>, number: u16, value: &[u8]) {
        set.extend_from_slice(&[0, 0]);
        set.extend_from_slice(&number.to_le_bytes());
        let padded = value.len() + value.len() % 2;
        set.extend_from_slice(&u32::try_from(padded).unwrap_or(0).to_le_bytes());
        set.extend_from_slice(value);
        set.resize(set.len() + value.len() % 2, 0);
    }
    let mut set = Vec::new();
    element(&mut set, 0x0002, request.sop_class.as_bytes());
    element(&mut set, 0x0100, &(request.command_field | 0x8000).to_le_bytes());
    element(&mut set, 0x0120, &request.message_id.to_le_bytes());
    element(&mut set, 0x0800, &NO_DATA_SET.to_le_bytes());
    element(&mut set, 0x0900, &status.code().to_le_bytes());
    if request.operation == Operation::Store {
        element(&mut set, 0x1000, request.sop_instance.as_bytes());
    }
    let mut command = Vec::new();
    element(&mut command, 0x0000, &u32::try_from(set.len()).unwrap_or(0).to_le_bytes());
    command.extend_from_slice(&set);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A C-STORE request as dcmtk's storescu sends it.
    fn store_request() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (element, value) in [
            (0x0002u16, &b"1.2.840.10008.5.1.4.1.1.2\0"[..]),
            (0x0100, &[1, 0]),
            (0x0110, &[7, 0]),
            (0x0700, &[0, 0]),
            (0x0800, &[1, 0]),
            (0x1000, b"1.2.3\0"),
        ] {
            bytes.extend([0, 0]);
            bytes.extend(element.to_le_bytes());
            bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            bytes.extend(value);
        }
        bytes
    }

    #[test]
    fn a_request_is_read_and_answered() {
        let request = read_request(&store_request()).unwrap();
        assert_eq!(
            (request.operation, request.message_id, request.has_data_set),
            (Operation::Store, 7, true)
        );
        assert_eq!(
            (request.sop_class.as_str(), request.sop_instance.as_str()),
            ("1.2.840.10008.5.1.4.1.1.2", "1.2.3")
        );
        let response = write_response(&request, Status::OutOfResources);
        assert_eq!(response.len() % 2, 0);
        assert_eq!(u32::from_le_bytes(response[8..12].try_into().unwrap()) as usize, response.len() - 12);
        let status = response.windows(8).position(|w| w == [0, 0, 0, 9, 2, 0, 0, 0]).unwrap() + 8;
        assert_eq!(response[status..status + 2], 0xA700u16.to_le_bytes());
        assert!(read_request(&response).is_none(), "a response is no request");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_request(&bytes);
        }

        #[test]
        fn a_changed_byte_never_makes_it_panic(at in 0usize..200, byte: u8, cut in 0usize..200) {
            let mut bytes = store_request();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = read_request(&bytes);
        }
    }
}
