using System;
using System.Web;

[assembly: PreApplicationStartMethod(typeof(Claviger.AspNet.Watch), nameof(Claviger.AspNet.Watch.Register))]

namespace Claviger.AspNet
{
    /// <summary>
    /// Notes that custody failed while a request was answered. The module of forms
    /// authentication, and OWIN's cookies, take every exception for a wrong token:
    /// their answer would be that of a user who is logged out. It is answered with
    /// 503 instead, and no cookie of it leaves.
    /// </summary>
    public sealed class Watch : IHttpModule
    {
        private static readonly object Failed = new object();

        /// <summary>Puts the module into every application that has this assembly.</summary>
        public static void Register() => HttpApplication.RegisterModule(typeof(Watch));

        internal static T Over<T>(Func<T> call)
        {
            try
            {
                return call();
            }
            catch (Unavailable e)
            {
                var context = HttpContext.Current;
                if (context != null)
                {
                    context.Items[Failed] = e;
                }
                throw;
            }
        }

        public void Init(HttpApplication application)
        {
            // No page is to see a stranger in the place of its user.
            application.PostAuthenticateRequest += Stop;
            application.PostAuthorizeRequest += Stop;
            application.EndRequest += Refuse;
        }

        public void Dispose()
        {
        }

        private static void Stop(object sender, EventArgs e)
        {
            if (((HttpApplication)sender).Context.Items[Failed] is Unavailable failed)
            {
                throw new Unavailable(failed.Message, failed);
            }
        }

        private static void Refuse(object sender, EventArgs e)
        {
            var context = ((HttpApplication)sender).Context;
            if (!context.Items.Contains(Failed))
            {
                return;
            }
            var response = context.Response;
            if (response.HeadersWritten)
            {
                context.Request.Abort();
                return;
            }
            response.Clear();
            response.ClearHeaders();
            response.Cookies.Clear();
            response.SuppressFormsAuthenticationRedirect = true;
            response.TrySkipIisCustomErrors = true;
            response.StatusCode = 503;
            response.ContentType = "text/plain";
            response.Cache.SetCacheability(HttpCacheability.NoCache);
            response.Cache.SetNoStore();
            response.Write("custody of keys is not available\n");
        }
    }
}
