// Gives tables with filters a menu for each of these columns. Without it they
// show all rows.
for (const table of document.querySelectorAll('table[data-filters]')) {
  const rows = [...table.tBodies[0].rows];
  const text = (row, column) => row.cells[column].textContent.trim();
  const bar = document.createElement('div');
  bar.className = 'filters';
  const count = document.createElement('output');
  const menus = table.dataset.filters.split(' ').map((column) => {
    const label = document.createElement('label');
    const menu = document.createElement('select');
    const values = new Set(rows.map((row) => text(row, column)));
    values.delete('');
    for (const value of ['all', ...[...values].sort()]) {
      const option = document.createElement('option');
      option.textContent = value;
      menu.append(option);
    }
    label.append(`${text(table.tHead.rows[0], column)}: `, menu);
    bar.append(label);
    return [column, menu];
  });
  const show = () => {
    for (const row of rows) {
      row.hidden = !menus.every(([column, menu]) => menu.selectedIndex === 0 ||
        menu.options[menu.selectedIndex].textContent === text(row, column));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  bar.addEventListener('change', show);
  bar.append(count);
  table.parentElement.before(bar);
  show();
}
