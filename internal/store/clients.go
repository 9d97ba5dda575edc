package store

import (
	"claviger.dev"
)

var (
	errNoClient   = claviger.Errorf(claviger.NotFound, "there is no such client", "list the clients with 'claviger client list'")
	errNoReceiver = claviger.Errorf(claviger.NotFound, "there is no such receiver", "list the receivers with 'claviger receiver list'")
)

const clientColumns = `SELECT id, name, revision, document, checksum FROM clients`

func (r *keyRow) client() (c claviger.Client, err error) {
	if err := decode("client", r.id, r.document, r.sum, &c); err != nil {
		return claviger.Client{}, err
	}
	if string(c.ID) != r.id || string(c.Name) != r.name || c.Revision != r.revision {
		return claviger.Client{}, damaged("client", r.id, errColumns)
	}
	return c, nil
}

// Client returns a client by its id or name, disabled or not.
func (t *Tx) Client(ref string) (claviger.Client, error) {
	query := clientColumns + ` WHERE name = $1`
	if _, err := claviger.ParseID(ref); err == nil {
		query = clientColumns + ` WHERE id = $1`
	}
	var r keyRow
	if err := t.one("read client", errNoClient, query, []any{ref}, r.dest()...); err != nil {
		return claviger.Client{}, err
	}
	return r.client()
}

// ClientQuery chooses clients. Zero fields choose all.
type ClientQuery struct {
	Principal claviger.ID
	After     string // the next of the page before
	Limit     int    // page size: DefaultLimit when 0, at most MaxLimit
}

// Clients returns a page of clients in the order of their names, and what to
// pass as After for the next page, which is empty on the last.
func (t *Tx) Clients(q ClientQuery) (clients []claviger.Client, next string, err error) {
	limit := pageLimit(q.Limit)
	c := &clauses{}
	if q.Principal != "" {
		c.add("principal = %s", string(q.Principal))
	}
	if q.After != "" {
		c.add("name > %s", q.After)
	}
	query := clientColumns + c.sql() + ` ORDER BY name LIMIT ` + c.arg(limit+1)
	err = t.all("list clients", query, c.args, func(scan func(...any) error) error {
		var r keyRow
		if err := scan(r.dest()...); err != nil {
			return err
		}
		one, err := r.client()
		clients = append(clients, one)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(clients) > limit {
		clients = clients[:limit]
		next = string(clients[limit-1].Name)
	}
	return clients, next, nil
}

// InsertClient stores a new client with revision 1, whatever its Revision
// says. It answers claviger.Conflict when its name is taken.
func (t *Tx) InsertClient(c claviger.Client) error {
	c.Revision = 1
	args, err := clientArgs(c)
	if err != nil {
		return err
	}
	t.touch(c.ID)
	n, err := t.exec("insert client", `INSERT INTO clients (id, name, principal, disabled, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`, args...)
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "there is a client of this name", "choose another name; a disabled client keeps its own")
	}
	return err
}

// UpdateClient stores a changed client with Revision+1 if the stored revision
// is still c.Revision, and answers claviger.Conflict if it is not.
func (t *Tx) UpdateClient(c claviger.Client) error {
	c.Revision++
	args, err := clientArgs(c)
	if err != nil {
		return err
	}
	t.touch(c.ID)
	n, err := t.exec("update client", `UPDATE clients SET name = $2, principal = $3, disabled = $4, revision = $5,
		document = $6, checksum = $7 WHERE id = $1 AND revision = CAST($5 AS bigint) - 1`, args...)
	if err == nil && n == 0 {
		return t.lost("clients", string(c.ID), errNoClient)
	}
	return err
}

func clientArgs(c claviger.Client) ([]any, error) {
	document, sum, err := encode("client", string(c.ID), c)
	return []any{string(c.ID), string(c.Name), string(c.Principal), flag(!c.Disabled.IsZero()), c.Revision, document, sum}, err
}
