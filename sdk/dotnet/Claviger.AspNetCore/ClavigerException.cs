namespace Claviger.AspNetCore;

/// <summary>
/// Custody is away, or refused the call. Nothing was made or checked. Code is one
/// of the API's, such as "unavailable" or "denied".
/// </summary>
public sealed class ClavigerException(string code, string message, Exception? inner = null) : Exception(message, inner)
{
    public string Code { get; } = code;
}
