// Makes the headings of sortable tables buttons that sort. Without it the
// tables keep the order of the page.
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener('click', () => {
      const numbers = heading.classList.contains('number');
      const before = heading.getAttribute('aria-sort');
      // Numbers start with the highest, names with the first.
      const first = numbers ? 'descending' : 'ascending';
      const other = numbers ? 'ascending' : 'descending';
      const order = before === first ? other : first;
      headings.forEach((each) => each.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', order);
      const sign = order === 'ascending' ? 1 : -1;
      const text = (row) => row.cells[column].textContent.trim();
      const compare = (a, b) => {
        if (!numbers) return sign * text(a).localeCompare(text(b));
        const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
        // What was not measured stays last.
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
for (const hint of document.querySelectorAll('.hint')) hint.hidden = false;
