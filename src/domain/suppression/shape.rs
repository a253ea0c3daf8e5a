//! How wide the columns of a shard's rows are: as narrow as its values allow, fitted to a sample of them.

use super::memory::Block;

/// Columns of a row.
const CELLS: usize = 8;

/// The values of a row.
pub(super) type Cells = [i64; CELLS];

/// Widest column. A column begins at any bit of a byte and is read with one load of 64 bits.
pub(super) const MAX_WIDTH: u8 = 56;
/// A sample's outliers are left to the table of wide rows where the column gets narrower by so many bits without them.
const WORTH_LEAVING_OUT: u32 = 6;

/// A column of a smaller range is a number of few partitions or the like, and does not grow with the rows.
const GROWING: u64 = 256;

/// One column: values from `base` on, in `width` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Column {
    base: i64,
    width: u8,
}

/// The columns of a row, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    columns: [Column; CELLS],
}

impl Column {
    /// A column for values like these, with room for greater ones, as offsets and times grow: a quarter of the range, or so
    /// many times the range, where it is no small one.
    fn fit(values: &mut [i64], ahead: u64) -> Self {
        let between = |low: i64, high: i64| {
            let range = high.wrapping_sub(low) as u64;
            let base = low.saturating_sub_unsigned(range / 8);
            let ahead = if range >= GROWING { range.saturating_mul(ahead) } else { 0 };
            let top = high.saturating_add_unsigned(ahead.max(range / 4));
            let width = u64::BITS - (top.wrapping_sub(base) as u64).leading_zeros();
            (base, width)
        };
        let (low, high) = values.iter().fold((i64::MAX, i64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
        let all = if values.is_empty() { between(0, 0) } else { between(low, high) };
        let outliers = values.len() / 64;
        let (base, width) = if outliers == 0 || all.1 < WORTH_LEAVING_OUT {
            all
        } else {
            let (low, high) = (*values.select_nth_unstable(outliers).1, *values.select_nth_unstable(values.len() - 1 - outliers).1);
            let most = between(low, high);
            if all.1 >= most.1 + WORTH_LEAVING_OUT { most } else { all }
        };
        Self { base, width: width.min(u32::from(MAX_WIDTH)) as u8 }
    }

    fn fits(self, value: i64) -> bool {
        (value.wrapping_sub(self.base) as u64) >> self.width == 0
    }
}

impl Shape {
    /// A shape for rows like these, and for `ahead` times as many that are still to come. It may leave out a few of them.
    pub(super) fn fit(sample: &[Cells], ahead: u64) -> Self {
        let mut values = Vec::with_capacity(sample.len());
        let columns = std::array::from_fn(|column| {
            values.clear();
            values.extend(sample.iter().map(|cells| cells[column]));
            Column::fit(&mut values, ahead)
        });
        Self { columns }
    }

    /// Where the values of each column begin, and how many bits they take.
    pub(super) fn columns(&self) -> [(i64, u8); CELLS] {
        self.columns.map(|column| (column.base, column.width))
    }

    /// Something of each line of cache that it takes.
    #[inline]
    pub(super) fn lines(&self) -> [&i64; 2] {
        [&self.columns[0].base, &self.columns[CELLS / 2].base]
    }

    /// A shape of such columns.
    pub(super) fn of_columns(columns: [(i64, u8); CELLS]) -> Self {
        Self { columns: columns.map(|(base, width)| Column { base, width }) }
    }

    /// Whether every value fits its column.
    pub(super) fn fits(&self, cells: &Cells) -> bool {
        self.columns.iter().zip(cells).all(|(column, cell)| column.fits(*cell))
    }

    /// Bits of a row.
    pub(super) fn width(&self) -> usize {
        self.columns.iter().map(|column| usize::from(column.width)).sum()
    }

    /// Writes a row that fits.
    #[inline]
    pub(super) fn write(&self, row: &mut Writer<'_>, cells: &Cells) {
        for (column, cell) in self.columns.iter().zip(cells) {
            row.push(column.width, cell.wrapping_sub(column.base) as u64);
        }
    }

    /// Reads a row.
    #[inline]
    pub(super) fn read(&self, bits: &Bits, mut at: usize) -> Cells {
        let mut cells = [0; CELLS];
        for (cell, column) in cells.iter_mut().zip(&self.columns) {
            *cell = column.base.wrapping_add(bits.get(at, column.width) as i64);
            at += usize::from(column.width);
        }
        cells
    }
}

/// Bits in a row, read and written up to 56 at a time.
#[derive(Clone, Default)]
pub(super) struct Bits(Block<u8>);

/// Every read and write is of eight bytes.
const PADDING: usize = 8;

impl Bits {
    /// So many zero bits.
    pub(super) fn zeroed(bits: usize) -> Self {
        Self(Block::zeroed(Self::bytes_for(bits)))
    }

    /// Bits that were taken out of such a row of bytes before.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Block::copy_of(bytes))
    }

    /// The bytes that they lie in.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Bytes that so many bits take.
    pub(super) fn bytes_for(bits: usize) -> usize {
        bits.div_ceil(8) + PADDING
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.0.allocated_bytes()
    }

    /// Where they lie.
    pub(super) fn place(&self) -> usize {
        self.0.place()
    }

    /// Moves them into the gap before them.
    pub(super) fn slide(&mut self) {
        self.0.slide();
    }

    /// `width` bits from bit `at`.
    #[inline]
    pub(super) fn get(&self, at: usize, width: u8) -> u64 {
        let word = self.0.get(at / 8..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        (word >> (at % 8)) & mask(width)
    }

    /// The byte that bit `at` is in.
    #[inline]
    pub(super) fn byte(&self, at: usize) -> Option<&u8> {
        self.0.get(at / 8)
    }

    /// The last byte that is read with the bits before bit `end`.
    #[inline]
    pub(super) fn last_byte(&self, end: usize) -> Option<&u8> {
        self.0.get(end / 8 + PADDING - 1)
    }

    /// Sets `width` bits from bit `at`.
    #[inline]
    pub(super) fn set(&mut self, at: usize, width: u8, value: u64) {
        if let Some(bytes) = self.0.get_mut(at / 8..).and_then(|bytes| bytes.first_chunk_mut()) {
            let word = u64::from_le_bytes(*bytes) & !(mask(width) << (at % 8));
            *bytes = (word | ((value & mask(width)) << (at % 8))).to_le_bytes();
        }
    }
}

/// Writes bits one after the other: narrow pieces are gathered, because a write costs more than to gather.
pub(super) struct Writer<'a> {
    bits: &'a mut Bits,
    at: usize,
    gathered: u128,
    width: u8,
}

impl Bits {
    /// Writes from bit `at` on.
    pub(super) fn writer(&mut self, at: usize) -> Writer<'_> {
        Writer { bits: self, at, gathered: 0, width: 0 }
    }
}

impl Writer<'_> {
    /// Appends `width` bits; `value` has no others.
    #[inline]
    pub(super) fn push(&mut self, width: u8, value: u64) {
        self.gathered |= u128::from(value) << self.width;
        self.width += width;
        if self.width >= MAX_WIDTH {
            self.bits.set(self.at, MAX_WIDTH, self.gathered as u64);
            self.at += usize::from(MAX_WIDTH);
            self.gathered >>= MAX_WIDTH;
            self.width -= MAX_WIDTH;
        }
    }

    /// Appends `bits` bits of others.
    #[inline]
    pub(super) fn copy(&mut self, from: &Bits, at: usize, bits: usize) {
        for done in (0..bits).step_by(usize::from(MAX_WIDTH)) {
            let width = (bits - done).min(usize::from(MAX_WIDTH)) as u8;
            self.push(width, from.get(at + done, width));
        }
    }

    /// Writes what is left.
    #[inline]
    pub(super) fn finish(self) {
        self.bits.set(self.at, self.width, self.gathered as u64);
    }
}

fn mask(width: u8) -> u64 {
    (1 << width) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_fits_reads_back_and_leaves_its_neighbours_alone(
            sample in prop::collection::vec(prop::array::uniform8(prop_oneof![any::<i64>(), -9..9_i64, 1_700_000_000_000..1_800_000_000_000_i64]), 1..200),
        ) {
            let shape = Shape::fit(&sample, 0);
            let width = shape.width();
            let mut bits = Bits::zeroed(width * sample.len());
            for (row, cells) in sample.iter().enumerate().filter(|(_, cells)| shape.fits(cells)) {
                let mut row = bits.writer(row * width);
                shape.write(&mut row, cells);
                row.finish();
            }
            for (row, cells) in sample.iter().enumerate().filter(|(_, cells)| shape.fits(cells)) {
                prop_assert_eq!(shape.read(&bits, row * width), *cells);
            }
        }
    }

    #[test]
    fn a_shape_has_room_for_what_comes_next_and_leaves_out_what_is_rare() {
        let mut sample: Vec<Cells> = (0..256).map(|number| [number, 7, number % 4, 0, 0, 0, 0, 0]).collect();
        assert_eq!(Shape::fit(&sample, 0).columns[0].width, 9);
        assert_eq!(Shape::fit(&sample, 0).columns[1], Column { base: 7, width: 0 });
        assert!(Shape::fit(&sample, 0).fits(&[300, 7, 0, 0, 0, 0, 0, 0]));
        assert!(!Shape::fit(&sample, 0).fits(&[2560, 7, 0, 0, 0, 0, 0, 0]));
        sample.push([256, 7, 0, 0, 0, 0, 0, 0]);
        assert!(Shape::fit(&sample, 9).fits(&[2560, 7, 0, 0, 0, 0, 0, 0]));
        assert_eq!(Shape::fit(&sample, 9).columns[2].width, 2, "a number of a partition does not grow");
        sample[5][1] = i64::MAX;
        assert!(!Shape::fit(&sample, 0).fits(&sample[5]));
        assert!(Shape::fit(&sample, 0).fits(&sample[6]));
    }
}
